"""Row groups as the loader keeps them: tokenised whole, packed, and only the ones that are in use."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8

from mdsc.data.condition_levels import level_ids
from mdsc.data.quarantine import Quarantine, TrainingCells
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.tokenizers import Tokenizer

TOP = 255


@dataclass(frozen=True, eq=False)
class TokenGroup:
    """A row group with its tokens, each array in the narrowest integers that hold it (some 4 bytes per nonzero)."""

    gene_index: Integer[np.ndarray, " nnz"]
    counts: UInt8[np.ndarray, " nnz"]
    """Larger ones than 255, which are few, stand here as 255 and apart."""
    large_at: Int64[np.ndarray, " large"]
    """Where these are, ascending."""
    large_counts: Int32[np.ndarray, " large"]
    tokens: Integer[np.ndarray, " nnz"]
    starts: Int64[np.ndarray, " rows_plus_one"]
    """Where each row starts in these, and where the last one ends."""
    fold: Integer[np.ndarray, " rows"]
    """Which fit has seen each row (`mdsc.data.folds`)."""
    categories: Mapping[str, Integer[np.ndarray, " rows"]]
    """Level of each row, 0 = unknown, 1.. = place in the list of levels."""

    @property
    def count_type(self) -> np.dtype:
        """The narrowest that holds all counts."""
        return np.min_scalar_type(int(self.large_counts.max(initial=TOP)))

    def counts_of(self, part: slice) -> Integer[np.ndarray, " part"]:
        """Counts of some entries."""
        low, high = np.searchsorted(self.large_at, (part.start, part.stop))
        if low == high:
            return self.counts[part]
        counts = self.counts[part].astype(self.count_type)
        counts[self.large_at[low:high] - part.start] = self.large_counts[low:high]
        return counts


@dataclass(frozen=True, eq=False)
class CellEntries:
    """The nonzero entries of some cells, one cell after the other."""

    gene_index: Integer[np.ndarray, " nnz"]
    counts: Integer[np.ndarray, " nnz"]
    tokens: Integer[np.ndarray, " nnz"]
    indptr: Int64[np.ndarray, " cells_plus_one"]


def entries_of(groups: Sequence[TokenGroup], rows: Sequence[int]) -> CellEntries:
    """Of cells that are given by their row groups and rows in these."""
    parts = [slice(group.starts[row], group.starts[row + 1]) for group, row in zip(groups, rows, strict=True)]
    whole = list(zip(groups, parts, strict=True))
    return CellEntries(
        gene_index=np.concatenate([group.gene_index[part] for group, part in whole]),
        counts=np.concatenate([group.counts_of(part) for group, part in whole]),
        tokens=np.concatenate([group.tokens[part] for group, part in whole]),
        indptr=np.cumsum([0] + [part.stop - part.start for part in parts]),
    )


class TokenGroups:
    """Reads and tokenises row groups, and keeps those in use, and others while there is room. For one thread."""

    def __init__(
        self, source: Quarantine, tokenizer: Tokenizer, levels: Mapping[str, tuple[str, ...]], *, capacity: int
    ):
        """`capacity`: row groups that are kept where fewer are in use."""
        self._source = source
        self._tokenizer = tokenizer
        self._levels = levels
        self._capacity = capacity
        self._kept: dict[RowGroupRef, TokenGroup] = {}

    def get(self, needed: Collection[RowGroupRef], in_use: Collection[RowGroupRef]) -> list[TokenGroup]:
        """The row groups, or what stands in for them. What is neither needed nor in use makes room, oldest first."""
        missing = [ref for ref in needed if ref not in self._kept]
        too_many = len(self._kept) + len(missing) - self._capacity
        if too_many > 0:
            unused = self._kept.keys() - set(in_use) - set(needed)
            for ref in [ref for ref in self._kept if ref in unused][:too_many]:
                del self._kept[ref]
        for ref in missing:
            training = self._source.training_cells(ref, tuple(self._levels))
            self._kept[ref] = tokenise(training, self._tokenizer, self._levels, len(self._source.folder.vocabulary))
        return [self._kept[ref] for ref in needed]


def tokenise(
    training: TrainingCells, tokenizer: Tokenizer, levels: Mapping[str, tuple[str, ...]], vocabulary_size: int
) -> TokenGroup:
    """Tokens of a whole row group in one call, and its conditions as places in `levels`."""
    cells = training.cells
    large_at = np.flatnonzero(cells.counts > TOP)
    counts = cells.counts.astype(np.uint8)
    counts[large_at] = TOP
    return TokenGroup(
        gene_index=cells.gene_index.astype(np.min_scalar_type(max(vocabulary_size - 1, 0))),
        counts=counts,
        large_at=large_at,
        large_counts=cells.counts[large_at],
        tokens=tokenizer.encode(cells.counts, cells.indptr).astype(np.min_scalar_type(tokenizer.num_tokens - 1)),
        starts=cells.indptr,
        fold=training.fold.astype(np.int8),
        categories={name: level_ids(cells.conditions[name], known).astype(np.int32) for name, known in levels.items()},
    )
