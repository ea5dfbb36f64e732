"""Chosen genes of some cells as dense arrays: what a batch is before it becomes tensors."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64

from mdsc.data.batch import CellBatch
from mdsc.data.token_groups import TokenCell


class DenseCells:
    """Arrays (cells, genes) that are filled a group of cells at a time. What is not filled stays a pad."""

    def __init__(self, num_cells: int, num_genes: int, *, vocabulary_size: int, pad_token: int):
        self._vocabulary_size = vocabulary_size
        shape = (num_cells, num_genes)
        self._gene_ids = np.zeros(shape, dtype=np.int64)
        self._counts = np.zeros(shape, dtype=np.int32)
        self._tokens = np.full(shape, pad_token, dtype=np.int64)
        self._is_pad = np.ones(shape, dtype=bool)

    def fill_gene_set(self, first: int, cells: Sequence[TokenCell], gene_set: Int64[np.ndarray, " genes"]) -> None:
        """Rows `first`, `first` + 1, ...: the same genes of every cell, zeros included."""
        rows = slice(first, first + len(cells))
        width = self._tokens.shape[1]
        self._gene_ids[rows] = gene_set
        self._tokens[rows] = 0
        self._is_pad[rows] = False

        column_of = np.full(self._vocabulary_size, -1, dtype=np.int32)
        column_of[gene_set] = np.arange(len(gene_set))
        genes = np.concatenate([cell.gene_index for cell in cells])
        column = column_of.take(genes, mode="clip")  # ids are valid; "clip" saves the check of each
        drawn = np.flatnonzero(column >= 0)
        start = np.arange(first, first + len(cells)) * width
        place = np.repeat(start, [len(cell.gene_index) for cell in cells])[drawn] + column[drawn]
        self._counts.ravel()[place] = np.concatenate([cell.counts for cell in cells])[drawn]
        self._tokens.ravel()[place] = np.concatenate([cell.tokens for cell in cells])[drawn]

    def fill_entries(self, row: int, cell: TokenCell, entries: Int64[np.ndarray, " entries"]) -> None:
        """One row: some of the cell's nonzero entries, pads behind them."""
        part = (row, slice(0, len(entries)))
        self._gene_ids[part] = cell.gene_index[entries]
        self._counts[part] = cell.counts[entries]
        self._tokens[part] = cell.tokens[entries]
        self._is_pad[part] = False

    def batch(
        self,
        cell_index: Int64[np.ndarray, " cells"],
        fold: Int64[np.ndarray, " cells"],
        categories: Mapping[str, Int64[np.ndarray, " cells"]],
    ) -> CellBatch:
        return CellBatch(
            gene_ids=torch.from_numpy(self._gene_ids),
            counts=torch.from_numpy(self._counts),
            tokens=torch.from_numpy(self._tokens),
            is_pad=torch.from_numpy(self._is_pad),
            cell_index=torch.from_numpy(cell_index),
            fold=torch.from_numpy(fold),
            categories={name: torch.from_numpy(level) for name, level in categories.items()},
        )
