"""Dropout that a cell takes along."""

import pytest
import torch
from torch import nn

from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.model.keyed_dropout import KeyedDropout, keyed_dropout


def dropped(layer: nn.Module, x: torch.Tensor, cells: torch.Tensor, *, seed: int = 0, step: int = 0) -> torch.Tensor:
    with keyed_dropout(layer, seed=seed, step=step, cell_index=cells):
        return layer(x)


@pytest.mark.parametrize("shape", [(5,), (7, 3)], ids=["features", "genes-and-features"])
def test_a_cell_keeps_its_features_in_any_batch(shape: tuple[int, ...]):
    layer, x, cells = KeyedDropout(0.4), torch.randn(6, *shape), torch.arange(6) + 10
    whole = dropped(layer, x, cells)
    rows = torch.tensor([4, 1])
    assert torch.equal(dropped(layer, x[rows], cells[rows]), whole[rows])
    assert not torch.equal(whole == 0, dropped(layer, x, cells + 1) == 0)


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}])
def test_other_keys_drop_others(change: dict):
    layer, x, cells = KeyedDropout(0.5), torch.ones(8, 16), torch.arange(8)
    assert not torch.equal(dropped(layer, x, cells), dropped(layer, x, cells, **change))


def test_the_keys_are_seed_step_layer_cell_and_feature():
    """States of older versions go on with the same draws."""
    layers = nn.Sequential(KeyedDropout(0.0), KeyedDropout(0.5))
    found = dropped(layers, torch.ones(8, 16), torch.arange(8), seed=3, step=5)
    drawn = keyed_uniform(Stream.DROPOUT, 3, 5, 1, torch.arange(8)[:, None], torch.arange(16))
    assert torch.equal(found != 0, drawn >= 0.5)


def test_layers_drop_others():
    layers = nn.ModuleList([KeyedDropout(0.5), KeyedDropout(0.5)])
    with keyed_dropout(layers, seed=0, step=0, cell_index=torch.arange(8)):
        one, other = (layer(torch.ones(8, 16)) for layer in layers)
    assert not torch.equal(one, other)


def test_the_share_and_the_mean_are_right():
    kept = dropped(KeyedDropout(0.3), torch.ones(200, 500), torch.arange(200))
    assert (kept == 0).double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 1e5) ** 0.5)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.01)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}


def test_nothing_is_dropped_in_evaluation_or_with_share_0():
    x, cells = torch.randn(4, 5), torch.arange(4)
    assert torch.equal(dropped(KeyedDropout(0.9).eval(), x, cells), x)
    assert torch.equal(dropped(KeyedDropout(0.0), x, cells), x)


def test_without_keys_it_is_plain_dropout():
    layer, x = KeyedDropout(0.5), torch.ones(50, 50)
    with pytest.raises(ZeroDivisionError), keyed_dropout(layer, seed=0, step=0, cell_index=torch.arange(50)):
        raise ZeroDivisionError  # keys end with their block, whatever happens in it
    torch.manual_seed(0)
    one = layer(x)
    torch.manual_seed(0)
    assert torch.equal(one, nn.functional.dropout(x, 0.5))
