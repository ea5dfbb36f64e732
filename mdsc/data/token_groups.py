"""Row groups as the loader keeps them: tokenised whole, packed, and only the ones that are in use."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer

from mdsc.data.compiled import compiled
from mdsc.data.condition_levels import level_ids
from mdsc.data.quarantine import Quarantine, TrainingCells
from mdsc.data.row_groups import RowGroup, RowGroupRef
from mdsc.data.tokenizers import Tokenizer

NARROW = np.dtype([("gene", "<u2"), ("count", "u1"), ("token", "u1")])
WIDE = np.dtype([("gene", "<u4"), ("count", "<u2"), ("token", "<u2")])
"""A nonzero of a cell as one number: the gene is the lower half of its bits, then come count and token."""


@dataclass(frozen=True, eq=False)
class TokenGroup:
    """A row group with its tokens, at 4 bytes a nonzero (8 where more than 65,536 genes or 256 tokens are known)."""

    entries: np.ndarray
    """(nnz,) of NARROW or WIDE. Counts above the highest that has room, which are few, stand as that, and apart."""
    large_at: Int64[np.ndarray, " large"]
    """Where these are, ascending."""
    large_counts: Int32[np.ndarray, " large"]
    starts: Int64[np.ndarray, " rows_plus_one"]
    """Where each row starts in these, and where the last one ends."""
    fold: Integer[np.ndarray, " rows"]
    """Which fit has seen each row (`mdsc.data.folds`)."""
    categories: Mapping[str, Integer[np.ndarray, " rows"]]
    """Level of each row, 0 = unknown, 1.. = place in the list of levels."""

    @property
    def count_type(self) -> np.dtype:
        """The narrowest that holds all counts."""
        return np.min_scalar_type(int(self.large_counts.max(initial=highest_count(self.entries.dtype))))

    def counts_of(self, part: slice) -> Integer[np.ndarray, " part"]:
        """Counts of some entries."""
        low, high = np.searchsorted(self.large_at, (part.start, part.stop))
        if low == high:
            return self.entries["count"][part]
        counts = self.entries["count"][part].astype(self.count_type)
        counts[self.large_at[low:high] - part.start] = self.large_counts[low:high]
        return counts


def highest_count(kind: np.dtype) -> int:
    """That an entry has room for."""
    return int(np.iinfo(kind["count"]).max)


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
    entries = np.concatenate([group.entries[part] for group, part in whole])
    return CellEntries(
        gene_index=entries["gene"],
        counts=np.concatenate([group.counts_of(part) for group, part in whole]),
        tokens=entries["token"],
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
    is_narrow = vocabulary_size <= 1 << 16 and tokenizer.num_tokens <= 1 << 8
    entries = packed(cells, tokenizer.encode(cells.counts, cells.indptr), NARROW if is_narrow else WIDE)
    highest = highest_count(entries.dtype)
    has_large = cells.counts.max(initial=0) > highest  # mostly not, and the largest is found sooner than all
    large_at = np.flatnonzero(cells.counts > highest) if has_large else np.zeros(0, dtype=np.int64)
    return TokenGroup(
        entries=entries,
        large_at=large_at,
        large_counts=cells.counts[large_at],
        starts=cells.indptr,
        fold=training.fold.astype(np.int8),
        categories={name: level_ids(cells.conditions[name], known).astype(np.int32) for name, known in levels.items()},
    )


def packed(cells: RowGroup, tokens: Integer[np.ndarray, " nnz"], kind: np.dtype) -> np.ndarray:
    """Genes, counts (up to `highest_count`) and tokens as entries: (nnz,) of `kind`."""
    entries = np.empty(len(tokens), dtype=kind)
    if (loop := compiled(_pack_loop)) is not None:
        loop(cells.gene_index, cells.counts, tokens, highest_count(kind), as_numbers(entries))
        return entries
    entries["gene"], entries["token"] = cells.gene_index, tokens
    entries["count"] = np.minimum(cells.counts, highest_count(kind))
    return entries


def as_numbers(entries: np.ndarray) -> Integer[np.ndarray, " nnz"]:
    """Each entry as the one number that it is, for compiled loops, which are slow with fields."""
    return entries.view(f"<u{entries.itemsize}")


def _pack_loop(genes, counts, tokens, highest, numbers):
    """Fill `numbers`; to be compiled."""
    half = numbers.dtype.type(numbers.itemsize * 4)
    quarters = half + (half >> numbers.dtype.type(1))
    for entry in range(len(numbers)):
        gene, count, token = genes[entry], min(counts[entry], highest), tokens[entry]
        number = numbers.dtype.type(gene)
        number |= numbers.dtype.type(count) << half
        numbers[entry] = number | (numbers.dtype.type(token) << quarters)
