"""What is read at once: the cells of one split in one row group; and where they stand among all training cells."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from mdsc.data.bit_masks import mask_bits


@dataclass(frozen=True)
class RowGroupRef:
    """The cells of one split in one row group: all of its rows, or the ones that `mask` chooses."""

    file: str
    group: int
    rows: int
    """Cells of the split."""
    mask: str = ""
    """Which rows are of the split, as the hex digits of a bit mask; "" for all."""

    def chosen(self, stored_rows: int) -> Int64[np.ndarray, " rows"]:
        """Numbers of the rows, of all that the row group has."""
        if not self.mask:
            return np.arange(stored_rows)
        return np.flatnonzero(mask_bits(self.mask, stored_rows))


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Cells as CSR; entries of one cell are in the order of the file (ascending in all that mdsc writes)."""

    counts: Int32[np.ndarray, " nnz"]
    gene_index: Int32[np.ndarray, " nnz"]
    """Places in the vocabulary."""
    indptr: Int64[np.ndarray, " rows_plus_one"]
    cell_ids: np.ndarray
    """(rows,) of str; (0,) where they were not asked for."""
    conditions: dict[str, np.ndarray]
    """(rows,) of str each; "" is unknown."""

    def select(self, rows: Int64[np.ndarray, " chosen"]) -> "RowGroup":
        """Some of the cells, in this order."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.repeat(self.indptr[rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        conditions = {name: values[rows] for name, values in self.conditions.items()}
        cell_ids = self.cell_ids[rows] if len(self.cell_ids) else self.cell_ids
        return RowGroup(self.counts[entries], self.gene_index[entries], indptr, cell_ids, conditions)


@dataclass(frozen=True, eq=False)
class Portion:
    """Training cells that were measured for the same genes and have lanes of their own."""

    row_groups: list[RowGroupRef]
    weight: float
    """Share of a batch, beside the weights of other portions."""
    measured: Bool[np.ndarray, " genes"]
    detection_rate: Float64[np.ndarray, " genes"]
    """Of these cells; 0 where a gene was not measured."""
