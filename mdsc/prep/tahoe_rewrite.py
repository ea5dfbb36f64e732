"""Expression files of Tahoe-100M in a compact form: the same cells in the same order, in fewer bytes.

Counts are uint16 (int32 in a file that has a larger one), gene ids int32, without the CLS entry, zstd, and only the
columns that a reader wants. Row groups stay as they are (larger ones are cut to 1,000 rows) and files keep their names,
so that the plan of a run, its validation cells and its tokens are those of the original files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from mdsc.atomic import replacing
from mdsc.data.bit_masks import bit_mask, mask_bits
from mdsc.data.byte_ranges import DamagedFile, Location
from mdsc.data.manifest import Shard
from mdsc.data.row_group_checks import cell_entries, strings
from mdsc.data.row_groups import RowGroup
from mdsc.data.shard_file import hash_parts, read_row_group
from mdsc.data.shard_writer import ROWS_PER_GROUP
from mdsc.errors import UserError
from mdsc.prep.tahoe_scan import CELL_ID, LISTS

LARGEST = np.iinfo(np.uint16).max
# Ids ascend within a cell, so their differences take a byte where they take four. On 7,000 simulated cells with 1,450
# counts this gave 1,508 bytes a cell against 2,775 with a dictionary of ids, and reads as fast.
ENCODINGS = {"genes.list.element": "DELTA_BINARY_PACKED"}


class _LargeCount(Exception):
    """A count beyond uint16."""


def rewrite_file(
    file: Location, shard: Shard, columns: Sequence[str], index_of_token: Int32[np.ndarray, " ids"], target: Path
) -> Shard:
    """Write the cells of one file that are of a split, with these columns of text, and say what was written."""
    token_ids = np.flatnonzero(index_of_token >= 0)
    for kind in (pa.uint16(), pa.int32()):
        try:
            with replacing(target) as beside:
                masks = _write(beside, _groups(file, shard, columns, index_of_token), token_ids, columns, kind)
        except _LargeCount:
            continue
        row_groups, hashes = hash_parts(target)
        return Shard(
            file=shard.file,
            split=shard.split,
            bytes=target.stat().st_size,
            row_groups=row_groups,
            hashes=hashes,
            heldout=tuple(masks) if any(masks) else (),
        )
    raise AssertionError("int32 holds every count that is read")


def _groups(
    file: Location, shard: Shard, columns: Sequence[str], index_of_token: Int32[np.ndarray, " ids"]
) -> Iterator[tuple[RowGroup, np.ndarray]]:
    """Cells of each row group that are used, and which of them are held out."""
    for group, rows in enumerate(shard.row_groups):
        try:
            names = [*LISTS, CELL_ID, *columns]
            table = read_row_group(file, group, names, size=shard.bytes, hashes=shard.hashes)
            counts, places, indptr = cell_entries(table, index_of_token)
            text = {name: strings(table, name) for name in columns}
            cells = RowGroup(counts, places, indptr, strings(table, CELL_ID), text)
        except (DamagedFile, OSError) as error:
            raise UserError(f"{file}, row group {group}: {error}; copy the file again, or leave it out") from error
        used = ~mask_bits(shard.unused[group] if shard.unused else "", rows)
        heldout = mask_bits(shard.heldout[group] if shard.heldout else "", rows)
        chosen = np.flatnonzero(used)
        for first in range(0, len(chosen), ROWS_PER_GROUP):
            part = chosen[first : first + ROWS_PER_GROUP]
            yield cells.select(part), heldout[part]


def _write(
    path: Path,
    groups: Iterator[tuple[RowGroup, np.ndarray]],
    token_ids: Int64[np.ndarray, " genes"],
    columns: Sequence[str],
    kind: pa.DataType,
) -> list[str]:
    """Write the row groups; give the bit mask of each one's held-out rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {name: pa.string() for name in (CELL_ID, *columns)}
    schema = pa.schema({"genes": pa.list_(pa.int32()), "expressions": pa.list_(kind)} | text)
    encoded = ["expressions.list.element", *text]
    masks = []
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=encoded, column_encoding=ENCODINGS) as out:
        for cells, heldout in groups:
            if kind == pa.uint16() and cells.counts.max(initial=0) > LARGEST:
                raise _LargeCount
            starts = pa.array(cells.indptr.astype(np.int32))
            table = {
                "genes": pa.ListArray.from_arrays(starts, pa.array(token_ids[cells.gene_index].astype(np.int32))),
                "expressions": pa.ListArray.from_arrays(starts, pa.array(cells.counts, kind)),
                CELL_ID: pa.array(cells.cell_ids, pa.string()),
            }
            table |= {name: pa.array(cells.conditions[name], pa.string()) for name in columns}
            out.write_table(pa.table(table, schema=schema), row_group_size=ROWS_PER_GROUP)
            masks.append(bit_mask(heldout) if heldout.any() else "")
    return masks
