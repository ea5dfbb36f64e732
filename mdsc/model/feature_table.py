"""Vectors of levels that a model keeps: of those it was trained on, and of others that it has never seen in a cell."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FeatureTable(nn.Module):
    """Fixed tables of one condition column, fitted before training (`mdsc.data.level_features`).

    They are buffers, so that every checkpoint has them: config.json names the rows, model.safetensors holds them.
    """

    def __init__(self, levels: Sequence[str], names: Sequence[str], num_features: int, size: int):
        """levels: of the training cells, ids 1, 2, ...; names: those that have a vector, some of them levels too."""
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("vectors", torch.zeros(len(names), size))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("basis", torch.zeros(num_features, size))
        row_of = {name: row for row, name in enumerate(names)}
        rows = [-1, *(row_of.get(level, -1) for level in levels)]
        # Persistent: what is built on the meta device, as from_pretrained does, gets its numbers from the weights file.
        self.register_buffer("row_of_level", torch.tensor(rows))

    def of_levels(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch size"]:
        """Vector of each level; NaN where the level is unknown, or has none."""
        return self.of_rows(self.row_of_level[ids])

    def of_rows(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch size"]:
        """Vector of each row, NaN for row -1."""
        return torch.where((rows >= 0)[:, None], self.vectors[rows.clamp(min=0)], torch.nan)

    def reduced(self, features: Float[Tensor, "names features"]) -> Float[Tensor, "names size"]:
        """Features as a user has them to vectors as the model takes them."""
        return (features.to(self.mean) - self.mean) @ self.basis
