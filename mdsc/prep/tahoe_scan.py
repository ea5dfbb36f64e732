"""One pass over an expression file of Tahoe-100M: is it what it should be, its hashes, its values, who is held out.

The columns of text are a hundredth of a file. Where its hashes are wanted all of it is read, once; else little more
than these columns.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int32

from mdsc.data.bit_masks import bit_mask
from mdsc.data.byte_ranges import DamagedFile, Location, read_range
from mdsc.data.row_group_checks import cell_entries, strings
from mdsc.data.shard_file import Layout, decode, part_hash, read_layout
from mdsc.errors import UserError
from mdsc.prep.tahoe_heldout import HeldoutRule

CELL_ID = "BARCODE_SUB_LIB_ID"
CLS_ID, CLS_VALUE = 1, -2
LISTS = ("genes", "expressions")


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """What is asked of every file."""

    columns: tuple[str, ...]
    """Columns of text whose values are counted."""
    hashes: Literal["all", "footer", "none"]
    """Of all parts, or of the footer and what else is read in full anyway (the first row group), or of nothing."""
    heldout: HeldoutRule
    plates: tuple[str, ...] = ()
    """Plates that are used; all where empty."""

    @property
    def text(self) -> tuple[str, ...]:
        """All columns of text that are read."""
        plates = ("plate",) if self.plates else ()
        return tuple(dict.fromkeys((*self.columns, *self.heldout.columns, *plates, CELL_ID)))


@dataclass(frozen=True, kw_only=True)
class FileScan:
    """What was found; all of it can be written as JSON."""

    row_groups: tuple[int, ...]
    hashes: tuple[str, ...]
    heldout: tuple[str, ...]
    unused: tuple[str, ...]
    values: dict[str, dict[str, tuple[int, int]]]
    """For each column the number of cells with each value: for training, and held out."""
    cells: tuple[int, int]
    """For training, and held out."""

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict) -> "FileScan":
        values = {name: {value: tuple(n) for value, n in counted.items()} for name, counted in stored["values"].items()}
        names = ("row_groups", "hashes", "heldout", "unused", "cells")
        return cls(values=values, **{name: tuple(stored[name]) for name in names})


def scan_file(file: Location, size: int, plan: ScanPlan, index_of_token: Int32[np.ndarray, " ids"]) -> FileScan:
    """Read one file. A `UserError` names the file and the column that is not as published."""
    try:
        layout = read_layout(file, size)
        _check_schema(layout, plan.text)
        groups = [_scan_group(file, layout, group, plan, index_of_token) for group in range(len(layout.rows))]
        footer = "" if plan.hashes == "none" else part_hash(read_range(file, layout.bounds[-2], size))
    except (DamagedFile, OSError) as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}; copy the file again, or leave it out") from error
    values: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in plan.columns}
    for group in groups:
        for name, counted in group.values.items():
            for value, number in counted.items():
                before = values[name].get(value, (0, 0))
                values[name][value] = (before[0] + number[0], before[1] + number[1])
    heldout, unused = [group.heldout for group in groups], [group.unused for group in groups]
    return FileScan(
        row_groups=layout.rows,
        hashes=() if plan.hashes == "none" else (*(group.hash for group in groups), footer),
        heldout=tuple(heldout) if any(heldout) else (),
        unused=tuple(unused) if any(unused) else (),
        values=values,
        cells=(sum(group.cells[0] for group in groups), sum(group.cells[1] for group in groups)),
    )


@dataclass(frozen=True)
class _GroupScan:
    hash: str
    heldout: str
    unused: str
    values: dict[str, dict[str, tuple[int, int]]]
    cells: tuple[int, int]


def _scan_group(
    file: Location, layout: Layout, group: int, plan: ScanPlan, index_of_token: Int32[np.ndarray, " ids"]
) -> _GroupScan:
    whole = plan.hashes == "all" or group == 0
    start, stop = layout.bounds[group : group + 2] if whole else span(layout.metadata, group, plan.text)
    data = read_range(file, start, stop)
    if group == 0:
        check_cells(decode(data, start, layout, group, LISTS), index_of_token)
    table = decode(data, start, layout, group, plan.text)
    text = {name: strings(table, name) for name in plan.text}
    used = np.isin(text["plate"].astype(str), plan.plates) if plan.plates else np.ones(len(table), dtype=bool)
    heldout = plan.heldout.rows(text[CELL_ID], text) & used
    train = used & ~heldout
    return _GroupScan(
        hash=part_hash(data) if whole else "",
        heldout=bit_mask(heldout) if heldout.any() else "",
        unused="" if used.all() else bit_mask(~used),
        values={name: _counted(text[name], train, heldout) for name in plan.columns},
        cells=(int(train.sum()), int(heldout.sum())),
    )


def _counted(text: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> dict[str, tuple[int, int]]:
    """How often each value is among the cells of each split; a value of neither is not told."""
    coded = pa.array(text, pa.string()).dictionary_encode()
    codes, names = coded.indices.to_numpy(), coded.dictionary.to_pylist()
    numbers = [np.bincount(codes[rows], minlength=len(names)).tolist() for rows in (train, heldout)]
    return {name: (one, other) for name, one, other in zip(names, *numbers, strict=True) if one or other}


def span(metadata: pq.FileMetaData, group: int, columns: Sequence[str]) -> tuple[int, int]:
    """The bytes from the first of some columns to the last, with what lies between."""
    row_group = metadata.row_group(group)
    chunks = [row_group.column(place) for place in range(row_group.num_columns)]
    ends = []
    for chunk in chunks:
        if chunk.path_in_schema.partition(".")[0] in columns:
            dictionary = chunk.dictionary_page_offset
            start = chunk.data_page_offset if dictionary is None else min(dictionary, chunk.data_page_offset)
            ends.append((start, start + chunk.total_compressed_size))
    return min(start for start, _ in ends), max(stop for _, stop in ends)


def _check_schema(layout: Layout, text: Sequence[str]) -> None:
    schema = layout.metadata.schema.to_arrow_schema()
    if lacking := [name for name in (*LISTS, *text) if name not in schema.names]:
        raise DamagedFile(f"it has no column {', '.join(lacking)} (it has {', '.join(schema.names)})")
    for name, is_right, told in (
        ("genes", pa.types.is_integer, "integers"),
        ("expressions", lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"),
    ):
        kind = schema.field(name).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not is_right(kind.value_type):
            raise DamagedFile(f"column {name} is {kind}, not lists of {told}")
    for name in text:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DamagedFile(f"column {name} is {kind}, not text")
    if any(one == other for one, other in pairwise(layout.bounds)):
        raise DamagedFile("a row group has no bytes")


def check_cells(table: pa.Table, index_of_token: Int32[np.ndarray, " ids"]) -> None:
    """Every row begins with Tahoe's CLS entry, and has positive integer counts of known genes behind it."""
    for name, marker in (("genes", CLS_ID), ("expressions", CLS_VALUE)):
        lists = table[name].combine_chunks()
        firsts = pc.list_element(lists, 0) if pc.all(_filled(lists)).as_py() else None
        wrong = None if firsts is None else pc.index(pc.equal(firsts, marker), False).as_py()
        if wrong is None or wrong >= 0:
            where = "a row is empty" if wrong is None else f"row {wrong} begins with {firsts[wrong]}"
            raise DamagedFile(
                f"column {name} of row group 0: {where}, not with Tahoe's CLS entry (id {CLS_ID}, value {CLS_VALUE})"
            )
    cell_entries(table, index_of_token)


def _filled(lists: pa.Array) -> pa.Array:
    return pc.fill_null(pc.greater(pc.list_value_length(lists), 0), False)
