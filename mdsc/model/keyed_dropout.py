"""Dropout that a cell takes along: the same features are dropped on any process and in any micro-batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.diffusion.keyed_random import Stream, keyed_uniform


class KeyedDropout(nn.Module):
    """Drops a share of the features, like nn.Dropout; within `keyed_dropout`, as a function of its keys alone."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.keys: tuple[int, int, int, Int[Tensor, " batch"]] | None = None

    def forward(self, x: Float[Tensor, " batch *features"]) -> Float[Tensor, " batch *features"]:
        if not self.training or self.share == 0 or self.keys is None:
            return F.dropout(x, self.share, self.training)
        *run, cell_index = self.keys
        feature = torch.arange(x[0].numel(), device=x.device).view(1, *x.shape[1:])
        cell_index = cell_index.view(-1, *[1] * (x.ndim - 1))
        is_kept = keyed_uniform(Stream.DROPOUT, *run, cell_index, feature) >= self.share
        return torch.where(is_kept, x / (1 - self.share), 0.0)


@contextmanager
def keyed_dropout(model: nn.Module, *, seed: int, step: int, cell_index: Int[Tensor, " batch"]) -> Iterator[None]:
    """Key the dropout of a batch by (seed, step, layer, place of the cell in the global batch)."""
    layers = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    for number, layer in enumerate(layers):
        layer.keys = (seed, step, number, cell_index)
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None
