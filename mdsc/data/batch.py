"""CellBatch: what the loader hands to the trainer, and the same from a matrix in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from mdsc.data.cell_tensors import CellTensors
from mdsc.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class CellBatch(CellTensors):
    """Some genes of some cells, whole: nothing is hidden yet.

    The loader gives the narrowest integers that do, which are quicker to fill and to send to a device; `widened` is
    what can be computed with.
    """

    gene_ids: Int[Tensor, "batch genes"]
    """Index into the vocabulary; 0 at pads."""
    counts: Int[Tensor, "batch genes"]
    """Raw counts; 0 at pads."""
    tokens: Integer[Tensor, "batch genes"]
    """Tokens of the whole cell, the targets; the tokenizer's pad_token at pads."""
    is_pad: Bool[Tensor, "batch genes"]
    cell_index: Int[Tensor, " batch"]
    """Position in the global batch, 0 .. B-1: keys what is random per cell, whatever rank it is on."""
    fold: Int[Tensor, " batch"]
    """Part of the training cells that a training cell is in, 1, 2, ...; 0 for other cells (`mdsc.data.folds`)."""
    categories: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    """Categorical conditions: 0 = unknown, 1.. = levels."""
    vectors: Mapping[str, Float[Tensor, "batch _"]] = field(default_factory=dict)
    """Vector conditions."""

    def widened(self) -> "CellBatch":
        """With integers that index and can be targets: counts in int32, all else in int64."""
        return replace(
            self, gene_ids=self.gene_ids.long(), counts=self.counts.to(torch.int32), tokens=self.tokens.long()
        )

    @classmethod
    def concatenated(cls, batches: Sequence["CellBatch"]) -> "CellBatch":
        """All cells of batches of one width and the same conditions."""
        if len(batches) == 1:
            return batches[0]
        joined = {}
        for entry in fields(cls):
            values = [getattr(batch, entry.name) for batch in batches]
            if isinstance(values[0], Mapping):
                joined[entry.name] = {name: torch.cat([value[name] for value in values]) for name in values[0]}
            else:
                joined[entry.name] = torch.cat(values)
        return cls(**joined)


def batch_from_csr(
    counts,
    gene_index: Int[np.ndarray, " genes"],
    tokenizer: Tokenizer,
    *,
    categories: Mapping[str, Int[np.ndarray, " cells"]] | None = None,
    vectors: Mapping[str, Float[np.ndarray, "cells _"]] | None = None,
    first_cell: int = 0,
) -> CellBatch:
    """Every gene of a panel for every row of `counts`: what sampling and evaluation work on.

    Args:
        counts: scipy CSR (cells, genes) of non-negative whole numbers; slice it for some cells. Its columns are the
            whole cell that is tokenised, so leave out what is not in the vocabulary before.
        gene_index: vocabulary index of each column; no -1.
        categories: level of each cell, 0 = unknown.
        vectors: vector conditions of each cell.
        first_cell: `cell_index` of the first row, so that slices of one matrix get the randomness of the whole.
    """
    assert counts.shape[1] == len(gene_index)
    assert (gene_index >= 0).all(), "columns outside the vocabulary are dropped before"
    num_cells, num_genes = counts.shape
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()  # stored zeros are zeros: only true nonzeros are ranked

    row = np.repeat(np.arange(num_cells), np.diff(counts.indptr))
    values = counts.data.astype(np.int32)
    dense = np.zeros((num_cells, num_genes), dtype=np.int32)
    dense[row, counts.indices] = values
    tokens = np.zeros((num_cells, num_genes), dtype=np.int64)
    tokens[row, counts.indices] = tokenizer.encode(values, counts.indptr.astype(np.int64))
    return CellBatch(
        gene_ids=torch.from_numpy(np.tile(gene_index.astype(np.int64), (num_cells, 1))),
        counts=torch.from_numpy(dense),
        tokens=torch.from_numpy(tokens),
        is_pad=torch.zeros(num_cells, num_genes, dtype=torch.bool),
        cell_index=torch.arange(first_cell, first_cell + num_cells),
        fold=torch.zeros(num_cells, dtype=torch.long),
        categories={name: torch.as_tensor(level, dtype=torch.long) for name, level in (categories or {}).items()},
        vectors={name: torch.as_tensor(vector, dtype=torch.float32) for name, vector in (vectors or {}).items()},
    )
