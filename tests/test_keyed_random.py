"""keyed_uniform: uniform, independent from key to key, fp64 to the last bit, and the same wherever it is computed."""

import pytest
import reference
import torch
from scipy import stats

from mdsc.diffusion.keyed_random import Stream, keyed_uniform

ROWS, COLUMNS = 400, 500


@pytest.fixture(scope="module")
def grid() -> torch.Tensor:
    """(cells, positions) draws with the keys that a corruption uses."""
    return keyed_uniform(Stream.HIDE, 7, 3, torch.arange(ROWS)[:, None], torch.arange(COLUMNS))


def test_is_float64_and_uniform_in_the_open_interval(grid):
    assert grid.dtype == torch.float64
    assert grid.shape == (ROWS, COLUMNS)
    assert grid.min() > 0
    assert grid.max() < 1
    assert stats.kstest(grid.flatten().numpy(), "uniform").pvalue > 1e-3
    # Each key alone, too: one cell's positions, one position's cells.
    for line in (grid[0], grid[ROWS // 2], grid[:, 0], grid[:, 1]):
        assert stats.kstest(line.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("bit", range(52))
def test_every_one_of_52_bits_is_a_fair_coin(grid, bit):
    """A draw below 1e-9 needs bits 30 and beyond: a float32 draw, or one made of 32 bits, has none there."""
    bits = (grid * 2.0**53).long() >> (52 - bit) & 1
    z = (bits.double().mean() - 0.5) * 2 * grid.numel() ** 0.5
    assert abs(z) < 4.5


def test_tail_has_the_right_mass(grid):
    for threshold in (1e-2, 1e-3, 1e-4):
        for tail in (grid < threshold, grid > 1 - threshold):
            expected = threshold * grid.numel()
            assert abs(int(tail.sum()) - expected) < 4.5 * expected**0.5


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((slice(None), slice(None, -1)), (slice(None), slice(1, None)), id="next position"),
        pytest.param((slice(None, -1), slice(None)), (slice(1, None), slice(None)), id="next cell"),
        pytest.param((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1)), id="same key sum"),
    ],
)
def test_neighbouring_keys_are_independent(grid, first, second):
    a, b = grid[first].flatten(), grid[second].flatten()
    table = torch.bincount((a * 8).long() * 8 + (b * 8).long(), minlength=64)
    assert stats.chisquare(table.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("key", range(5))
def test_neighbouring_values_of_any_key_are_independent(key):
    keys = [int(Stream.HIDE), 7, 3, torch.arange(100)[:, None], torch.arange(200)]
    a = keyed_uniform(*keys)
    keys[key] = keys[key] + 1
    b = keyed_uniform(*keys)
    if key < 3:  # beyond, the two overlap but for one line
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs() < 4.5 / a.numel() ** 0.5
    assert (a != b).all()


def test_order_of_keys_matters():
    assert keyed_uniform(1, 2) != keyed_uniform(2, 1)
    assert keyed_uniform(0) != keyed_uniform(0, 0)


def test_batch_composition_changes_nothing(grid):
    cells = torch.tensor([311, 2, 90])
    few = keyed_uniform(Stream.HIDE, 7, 3, cells[:, None], torch.arange(17))
    assert torch.equal(few, grid[cells, :17])
    assert keyed_uniform(Stream.HIDE, 7, 3, 90, 16) == grid[90, 16]


@pytest.mark.parametrize("keys", [(0,), (1, 0), (-1, 2**63 - 1), (2**64 + 5, 3, -(2**63)), (123456789, 42, 7, 1023)])
def test_equals_splitmix64_in_unbounded_integers(keys):
    assert keyed_uniform(*keys).item() == reference.keyed_uniform(*keys)


def test_golden_values():
    """The first outputs of splitmix64 from state 0 (0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f), which
    other implementations give too; a change here would change every run's corruption."""
    expected = [(2 * (x >> 12) + 1) / 2**53 for x in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]
    assert keyed_uniform(torch.arange(3)).tolist() == expected
    assert keyed_uniform(Stream.TOKEN, 1, 2, 3).item() == 0.4210734331599505


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_bits(grid):
    cells = torch.arange(ROWS, device="cuda")[:, None]
    on_gpu = keyed_uniform(Stream.HIDE, 7, 3, cells, torch.arange(COLUMNS, device="cuda"))
    assert torch.equal(on_gpu.cpu(), grid)
