"""Chosen genes of some cells as dense arrays: a batch before it becomes tensors, small enough to be sent around."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, Integer

from mdsc.data.batch import CellBatch
from mdsc.data.compiled import compiled
from mdsc.data.quarantine import Quarantined
from mdsc.data.token_groups import CellEntries, TokenGroup, as_numbers


@dataclass(frozen=True)
class DenseCells:
    """Cells of some lanes, the same number of each; in narrow integers, some 3 bytes a gene. What is not filled is pad.

    Cells that share a gene set hold it once: `gene_ids` then has a 1 in the place of `cells`.
    """

    gene_ids: Integer[np.ndarray, "lanes _ genes"]
    counts: Integer[np.ndarray, "lanes cells genes"]
    tokens: Integer[np.ndarray, "lanes cells genes"]
    num_real: Int64[np.ndarray, "lanes cells"]
    """The genes of a cell before its pads."""
    cell_index: Int64[np.ndarray, "lanes cells"]
    fold: Integer[np.ndarray, "lanes cells"]
    categories: Mapping[str, Integer[np.ndarray, "lanes cells"]]
    quarantined: tuple[Quarantined, ...] = ()
    """All row groups that whoever filled this has replaced until now."""

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int],
        *,
        shared_genes: bool,
        count_type: np.dtype,
        pad_token: int,
        columns: Sequence[str],
    ) -> "DenseCells":
        """(lanes, cells, genes); counts up to what `count_type` holds."""
        lanes, cells, genes = shape
        return cls(
            gene_ids=np.zeros((lanes, 1 if shared_genes else cells, genes), dtype=np.int32),
            counts=np.zeros(shape, dtype=count_type),
            tokens=np.full(shape, pad_token, dtype=np.uint8 if pad_token <= 255 else np.int16),
            num_real=np.zeros((lanes, cells), dtype=np.int64),
            cell_index=np.zeros((lanes, cells), dtype=np.int64),
            fold=np.zeros((lanes, cells), dtype=np.int8),
            categories={name: np.zeros((lanes, cells), dtype=np.int32) for name in columns},
        )

    def fill_gene_set(
        self,
        lane: int,
        groups: Sequence[TokenGroup],
        rows: Sequence[int],
        gene_set: Int64[np.ndarray, " genes"],
        vocabulary_size: int,
    ) -> None:
        """The same genes of every cell of a lane, zeros included; cells are given by row groups and rows in these."""
        width = len(gene_set)
        self.gene_ids[lane, :, :width] = gene_set
        self.num_real[lane] = width
        # Genes that are not drawn have a column of their own, the last, which is thrown away. Small numbers, so that
        # the table stays in the cache.
        column_of = np.full(vocabulary_size, width, dtype=np.min_scalar_type(width))
        column_of[gene_set] = np.arange(width)
        if (loop := compiled(_fill_loop)) is None:
            _fill(groups, rows, column_of, width, self.counts[lane], self.tokens[lane])
            return
        counts, tokens = self.counts[lane, :, :width], self.tokens[lane, :, :width]
        places_of: dict[int, list[int]] = {}
        for place, group in enumerate(groups):
            places_of.setdefault(id(group), []).append(place)
        rows = np.array(rows)
        for places in places_of.values():  # a call of the loop costs as much as a cell
            group, places = groups[places[0]], np.array(places)
            entries = (as_numbers(group.entries), group.large_at, group.large_counts, group.starts)
            loop(*entries, rows[places], places, column_of, counts, tokens)

    def fill_entries(self, lane: int, place: int, cells: CellEntries, entries: Int64[np.ndarray, " entries"]) -> None:
        """One cell: some of its nonzero entries, given by their places in `cells`; pads behind them."""
        part = (lane, place, slice(0, len(entries)))
        self.gene_ids[part] = cells.gene_index[entries]
        self.counts[part] = cells.counts[entries]
        self.tokens[part] = cells.tokens[entries]
        self.num_real[lane, place] = len(entries)

    def tell(
        self, lane: int, cell_index: Int64[np.ndarray, " cells"], groups: Sequence[TokenGroup], rows: Sequence[int]
    ) -> None:
        """Which cells a lane has: places in the global batch, and by row groups and rows their folds and levels."""
        cells = list(zip(groups, rows, strict=True))
        self.cell_index[lane] = cell_index
        self.fold[lane] = [group.fold[row] for group, row in cells]
        for name, level in self.categories.items():
            level[lane] = [group.categories[name][row] for group, row in cells]


def joined(parts: Sequence[DenseCells]) -> CellBatch:
    """The batch whose lane i is lane i // W of part i % W, of W parts; not widened."""
    size, width = parts[0].tokens.shape[1:]
    num_lanes = sum(len(part.tokens) for part in parts)

    def dealt(values: Sequence[np.ndarray], kind: np.dtype | type, shape: tuple[int, ...]) -> torch.Tensor:
        if len(parts) == 1 and values[0].dtype == kind and values[0].shape[1:] == shape:
            return torch.from_numpy(values[0].reshape(-1, *shape[1:]))
        whole = np.empty((num_lanes, *shape), dtype=kind)
        for number, value in enumerate(values):
            whole[number :: len(parts)] = value
        return torch.from_numpy(whole.reshape(-1, *shape[1:]))

    num_real = dealt([part.num_real for part in parts], np.int64, (size,))
    is_full = bool((num_real == width).all())
    return CellBatch(
        gene_ids=dealt([part.gene_ids for part in parts], np.int32, (size, width)),
        counts=dealt([part.counts for part in parts], np.int32, (size, width)),
        tokens=dealt([part.tokens for part in parts], parts[0].tokens.dtype, (size, width)),
        is_pad=torch.zeros(len(num_real), width, dtype=torch.bool)
        if is_full
        else torch.arange(width) >= num_real[:, None],
        cell_index=dealt([part.cell_index for part in parts], np.int64, (size,)),
        fold=dealt([part.fold for part in parts], np.int64, (size,)),
        categories={
            name: dealt([part.categories[name] for part in parts], np.int64, (size,)) for name in parts[0].categories
        },
    )


def _fill(
    groups: Sequence[TokenGroup],
    rows: Sequence[int],
    column_of: np.ndarray,
    width: int,
    dense_counts: np.ndarray,
    dense_tokens: np.ndarray,
) -> None:
    """Put the entries of genes that have a column below `width` into the two tables (cells, genes)."""
    dense_tokens[:, :width] = 0
    parts = [slice(group.starts[row], group.starts[row + 1]) for group, row in zip(groups, rows, strict=True)]
    entries = np.concatenate([as_numbers(group.entries)[part] for group, part in zip(groups, parts, strict=True)])
    entries = entries.view(groups[0].entries.dtype)
    column = column_of.take(entries["gene"], mode="clip")  # ids are valid; "clip" saves the check of each
    drawn = np.flatnonzero(column < width)
    first = np.arange(len(parts)) * dense_counts.shape[1]
    place = np.repeat(first, [part.stop - part.start for part in parts])[drawn] + column[drawn]
    entries = entries[drawn]
    dense_counts.reshape(-1)[place] = entries["count"]
    dense_tokens.reshape(-1)[place] = entries["token"]
    for cell, (group, part) in enumerate(zip(groups, parts, strict=True)):
        if len(group.large_at):
            low, high = np.searchsorted(group.large_at, (part.start, part.stop))
            column = column_of[group.entries["gene"][group.large_at[low:high]]]
            dense_counts[cell, column[column < width]] = group.large_counts[low:high][column < width]


def _fill_loop(numbers, large_at, large_counts, starts, rows, places, column_of, dense_counts, dense_tokens):
    """`_fill` for some rows of one row group, which go to `places`; to be compiled."""
    width = dense_counts.shape[1]
    half = numbers.dtype.type(numbers.itemsize * 4)
    is_gene = (numbers.dtype.type(1) << half) - numbers.dtype.type(1)
    quarter = half >> numbers.dtype.type(1)
    is_count = (numbers.dtype.type(1) << quarter) - numbers.dtype.type(1)
    row = np.empty(width + 1, dtype=numbers.dtype)
    for place, of in zip(places, rows):  # noqa: B905 - as numba knows it
        number, count, token = numbers[starts[of] : starts[of + 1]], dense_counts[place], dense_tokens[place]
        row[:] = 0
        for entry in range(len(number)):  # without a branch, whose outcome nothing could foretell
            row[column_of[number[entry] & is_gene]] = number[entry] >> half
        for gene in range(width):
            count[gene] = row[gene] & is_count
            token[gene] = row[gene] >> quarter
        for large in range(np.searchsorted(large_at, starts[of]), np.searchsorted(large_at, starts[of + 1])):
            column = column_of[numbers[large_at[large]] & is_gene]
            if column < width:
                count[column] = large_counts[large]
