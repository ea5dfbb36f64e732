"""Which unperturbed cell goes with which perturbed one."""

import itertools
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from mdsc.errors import UserError
from mdsc.perturbation.matching import MATCHINGS, match

needs_pot = pytest.mark.skipif(find_spec("ot") is None, reason="POT is not installed")


def cells(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@needs_pot
def test_optimal_transport_is_the_best_of_all_permutations():
    x, y = cells(6, 1), cells(6, 2)
    rows = match(x, y, "ot", rng=rng())
    assert sorted(rows) == list(range(6))

    def cost(chosen) -> float:
        return np.square(x[list(chosen)] - y).sum()

    assert cost(rows) == pytest.approx(min(cost(chosen) for chosen in itertools.permutations(range(6))))


@needs_pot
def test_optimal_transport_undoes_a_shift():
    x = cells(30, 3)
    order = np.random.default_rng(4).permutation(30)
    assert (match(x, x[order] + 2, "ot", rng=rng()) == order).all()


@needs_pot
@pytest.mark.parametrize(("n", "m"), [(3, 12), (12, 3), (5, 7)])
def test_sets_of_other_sizes_are_matched_by_share(n: int, m: int):
    """Each x gives what it has: over many draws each is taken as often as any other."""
    x, y = cells(n, 5), cells(m, 6)
    generator = rng()
    taken = sum(np.bincount(match(x, y, "ot", rng=generator), minlength=n) for _ in range(300)) / 300
    assert np.allclose(taken, m / n, atol=0.12 * max(1, m / n))


@pytest.mark.parametrize("how", MATCHINGS)
def test_batches_are_kept_but_by_random(how: str):
    if how == "ot":
        pytest.importorskip("ot")
    x, y = cells(40, 7), cells(60, 8)
    batch_of_x, batch_of_y = np.array(["a", "b"])[np.arange(40) % 2], np.array(["a", "b"])[np.arange(60) // 30]
    rows = match(x, y, how, batch_of_x, batch_of_y, rng=rng())
    kept = batch_of_x[rows] == batch_of_y
    assert kept.all() == (how != "random")
    assert len(np.unique(rows)) > 20


@pytest.mark.parametrize("how", MATCHINGS)
def test_a_batch_without_unperturbed_cells_takes_any(how: str):
    if how == "ot":
        pytest.importorskip("ot")
    rows = match(cells(9, 9), cells(5, 10), how, np.zeros(9, int), np.array([0, 0, 1, 1, 1]), rng=rng())
    assert rows.shape == (5,)
    assert ((rows >= 0) & (rows < 9)).all()


@pytest.mark.parametrize("how", MATCHINGS)
def test_a_seed_gives_the_same_pairs(how: str):
    if how == "ot":
        pytest.importorskip("ot")
    x, y = cells(20, 11), cells(50, 12)
    one, again = (match(x, y, how, rng=np.random.default_rng(3)) for _ in range(2))
    assert (one == again).all()
    assert (match(x, y, how, rng=np.random.default_rng(4)) != one).any()


def test_what_cannot_be_matched():
    with pytest.raises(ValueError, match="no matching 'nearest': there are random, batch, ot"):
        match(cells(2, 0), cells(2, 0), "nearest", rng=rng())
    with pytest.raises(ValueError, match="no unperturbed cells"):
        match(cells(0, 0), cells(2, 0), "random", rng=rng())
    with pytest.raises(ValueError, match="batches are known of one side alone"):
        match(cells(2, 0), cells(2, 0), "batch", np.zeros(2), rng=rng())


def test_without_pot_the_user_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(UserError, match=r"needs POT: pip install 'mdsc\[perturbation\]'"):
        match(cells(2, 0), cells(2, 0), "ot", rng=rng())
    assert len(match(cells(2, 0), cells(2, 0), "batch", rng=rng())) == 2


@needs_pot
def test_latents_that_are_not_finite_are_said():
    x = cells(4, 0)
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        match(x, cells(4, 1), "ot", rng=rng())
