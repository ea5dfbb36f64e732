"""What is known of a cell beside its counts: categorical and vector conditions, summed into one vector."""

from collections.abc import Mapping
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mdsc.model.feature_table import FeatureTable
from mdsc.model.zero_start import ZeroEmbedding


class Conditions(nn.Module):
    """Sum of an embedding per categorical condition (id 0: unknown) and a projection per vector condition.

    A column may have both: an embedding of the level, which is learned from its cells alone, and a vector of it, which
    levels that no cell has had may have too.
    """

    def __init__(
        self,
        levels: dict[str, list[str]],
        vector_sizes: dict[str, int],
        size: int,
        feature_names: dict[str, list[str]] | None = None,
        feature_sizes: dict[str, int] | None = None,
    ):
        """feature_names, feature_sizes: of the vector conditions that come from a table of a column's levels."""
        super().__init__()
        self.size = size
        # By name, not as they are given: config.json is written with sorted keys, and weights are told by their place.
        levels, vector_sizes = dict(sorted(levels.items())), dict(sorted(vector_sizes.items()))
        feature_names = dict(sorted((feature_names or {}).items()))
        # Lists, because a column may be called `type` or `a.b`, which no submodule can.
        self.category_names, self.vector_names = tuple(levels), tuple(vector_sizes)
        self.categories = nn.ModuleList([nn.Embedding(len(names) + 1, size) for names in levels.values()])
        self.vectors = nn.ModuleList([nn.Linear(length, size) for length in vector_sizes.values()])
        self.table_names = tuple(feature_names)
        self.tables = nn.ModuleList(
            [
                FeatureTable(levels[name], names, (feature_sizes or {})[name], vector_sizes[name])
                for name, names in feature_names.items()
            ]
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain(self.category_names, self.vector_names)))

    def table(self, name: str) -> FeatureTable | None:
        """The vectors of a column's levels; None where it was trained without."""
        return self.tables[self.table_names.index(name)] if name in self.table_names else None

    def vectors_of(self, categories: Mapping[str, Int[Tensor, " batch"]]) -> dict[str, Float[Tensor, "batch _"]]:
        """Vectors of the levels of each column that has any; NaN where a cell has none."""
        tables = zip(self.table_names, self.tables, strict=True)
        return {name: table.of_levels(categories[name]) for name, table in tables if name in categories}

    def forward(
        self,
        categories: Mapping[str, Int[Tensor, " batch"]] | None,
        vectors: Mapping[str, Float[Tensor, "batch _"]] | None,
        batch_size: int,
        device: torch.device,
    ) -> Float[Tensor, "batch size"]:
        """What is not given is unknown: category 0, and no vector at all, which a vector with a NaN stands for too.

        Where a column has a table and no vectors are given, they are those of the given levels.
        """
        categories, vectors = categories or {}, vectors or {}
        unknown = sorted((categories.keys() - set(self.category_names)) | (vectors.keys() - set(self.vector_names)))
        if unknown:
            raise ValueError(f"the model has no condition named {', '.join(unknown)}")
        vectors = self.vectors_of(categories) | dict(vectors)
        total = torch.zeros(batch_size, self.size, device=device)
        for name, embedding in zip(self.category_names, self.categories, strict=True):
            ids = categories.get(name)
            total = total + embedding(torch.zeros_like(total[:, 0], dtype=torch.long) if ids is None else ids)
        for name, projection in zip(self.vector_names, self.vectors, strict=True):
            if name in vectors:
                is_known = ~vectors[name].isnan().any(dim=-1, keepdim=True)
                total = total + torch.where(is_known, projection(vectors[name].nan_to_num()), 0.0)
        return total


class ConditionResponse(nn.Module):
    """What conditions add to the logits of each gene by themselves: logits += W (A c * h_gene), zero at the start.

    The head of the cell state moves genes along directions in which training cells differ, and a drug's may be others.
    It is linear in c, the sum over the conditions, so that what two of them do adds up in the logits where they have
    never been seen together; how they interact is for the cell state to say.
    """

    def __init__(self, num_genes: int, num_tokens: int, condition_size: int, rank: int):
        super().__init__()
        self.enter = nn.Linear(condition_size, rank, bias=False)  # A
        # What is zero at the start: each gene then learns from its own counts alone. Were it W, all genes would first
        # be moved along what they were drawn.
        self.gene = ZeroEmbedding(num_genes, rank)  # h
        self.leave = nn.Linear(rank, num_tokens, bias=False)  # W

    def forward(
        self, gene_ids: Int[Tensor, "batch genes"], condition: Float[Tensor, "batch condition"]
    ) -> Float[Tensor, "batch genes tokens"]:
        with torch.autocast(gene_ids.device.type, enabled=False):
            return self.leave(self.enter(condition.float())[:, None, :] * self.gene(gene_ids))
