"""Row groups as the loader keeps them: tokenised whole, packed, and only the ones that are in use."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from mdsc.data.condition_levels import level_ids
from mdsc.data.quarantine import Quarantine, TrainingCells
from mdsc.data.shards import RowGroupRef
from mdsc.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenCell:
    """The nonzero entries of one cell."""

    gene_index: Integer[np.ndarray, " nnz"]
    counts: Integer[np.ndarray, " nnz"]
    tokens: Integer[np.ndarray, " nnz"]


@dataclass(frozen=True)
class TokenGroup:
    """A row group with its tokens, each array in the narrowest integers that hold it (some 5 bytes per nonzero)."""

    gene_index: Integer[np.ndarray, " nnz"]
    counts: Integer[np.ndarray, " nnz"]
    tokens: Integer[np.ndarray, " nnz"]
    indptr: Int64[np.ndarray, " rows_plus_one"]
    categories: Mapping[str, Int64[np.ndarray, " rows"]]
    """Level of each row, 0 = unknown, 1.. = place in the list of levels."""
    fold: Int64[np.ndarray, " rows"]
    """Which fit has seen each row (`mdsc.data.folds`)."""

    def cell(self, row: int) -> TokenCell:
        part = slice(self.indptr[row], self.indptr[row + 1])
        return TokenCell(self.gene_index[part], self.counts[part], self.tokens[part])


def tokenise(training: TrainingCells, tokenizer: Tokenizer, levels: Mapping[str, tuple[str, ...]]) -> TokenGroup:
    """Tokens of a whole row group in one call, and its conditions as places in `levels`."""
    row_group, categories = training.cells, {}
    for name, known in levels.items():
        categories[name] = level_ids(row_group.conditions[name], known)
    return TokenGroup(
        gene_index=_narrow(row_group.gene_index),
        counts=_narrow(row_group.counts),
        tokens=_narrow(tokenizer.encode(row_group.counts, row_group.indptr)),
        indptr=row_group.indptr,
        categories=categories,
        fold=training.fold,
    )


class TokenGroups:
    """Reads and tokenises row groups, and keeps the `capacity` ones that were used last. For one thread."""

    def __init__(
        self, source: Quarantine, tokenizer: Tokenizer, levels: Mapping[str, tuple[str, ...]], *, capacity: int
    ):
        self._source = source
        self._tokenizer = tokenizer
        self._levels = levels
        self._capacity = capacity
        self._kept: OrderedDict[RowGroupRef, TokenGroup] = OrderedDict()

    def get(self, ref: RowGroupRef) -> TokenGroup:
        if ref in self._kept:
            self._kept.move_to_end(ref)
            return self._kept[ref]
        training = self._source.training_cells(ref, tuple(self._levels))
        self._kept[ref] = tokenise(training, self._tokenizer, self._levels)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return self._kept[ref]


def _narrow(values: Integer[np.ndarray, " nnz"]) -> Integer[np.ndarray, " nnz"]:
    """Non-negative integers in the smallest unsigned type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
