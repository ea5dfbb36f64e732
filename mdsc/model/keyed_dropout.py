"""Dropout that a cell takes along: the same features are dropped on any process and in any micro-batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.diffusion.keyed_random import Stream, keyed_state, keyed_uniform


class Keys(NamedTuple):
    """What decides which features a layer drops of each cell. Tensors: a compiler would take numbers for constants."""

    run: Int64[Tensor, ""]
    """Hash of seed, step and layer."""
    cell_index: Int[Tensor, " batch"]


class KeyedDropout(nn.Module):
    """Drops a share of the features, like nn.Dropout; within `keyed_dropout`, as a function of its keys alone."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.keys: Keys | None = None

    def forward(
        self, x: Float[Tensor, " batch *features"], keys: Keys | None = None
    ) -> Float[Tensor, " batch *features"]:
        """`keys`: those that `self.keys` were when the forward pass came by, for who recomputes it later."""
        keys = keys or self.keys
        if not self.training or self.share == 0 or keys is None:
            return F.dropout(x, self.share, self.training)
        feature = torch.arange(x[0].numel(), device=x.device).view(1, *x.shape[1:])
        cell_index = keys.cell_index.view(-1, *[1] * (x.ndim - 1))
        is_kept = keyed_uniform(cell_index, feature, after=keys.run) >= self.share
        return torch.where(is_kept, x / (1 - self.share), 0.0)


@contextmanager
def keyed_dropout(model: nn.Module, *, seed: int, step: int, cell_index: Int[Tensor, " batch"]) -> Iterator[None]:
    """Key the dropout of a batch by (seed, step, layer, place of the cell in the global batch)."""
    layers = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    if not any(layer.share for layer in layers):
        yield
        return
    numbers = torch.arange(len(layers), device=cell_index.device)
    runs = keyed_state(numbers, after=keyed_state(Stream.DROPOUT, seed, step))
    for layer, run in zip(layers, runs, strict=True):
        layer.keys = Keys(run, cell_index)
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None
