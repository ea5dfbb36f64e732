"""What is checked of every row group that is decoded, whoever wrote it; each fault is a `DamagedFile` with its column.

Hashes tell of changed bytes. These checks tell of files that were never right, and of files that have no hashes.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from mdsc.data.genes import FIRST_TOKEN_ID
from mdsc.data.shard_file import DamagedFile


def cell_entries(
    table: pa.Table, index_of_token: Int32[np.ndarray, " ids"]
) -> tuple[Int32[np.ndarray, " nnz"], Int32[np.ndarray, " nnz"], Int64[np.ndarray, " rows_plus_one"]]:
    """Counts, places in the vocabulary and row starts out of the list columns `expressions` and `genes`.

    Entries with an id below 3 (Tahoe's CLS, id 1 with value -2) are dropped.
    """
    genes, indptr = _flatten(table, "genes", pa.types.is_integer)
    values, value_indptr = _flatten(table, "expressions", _is_number)
    if not np.array_equal(indptr, value_indptr):
        raise DamagedFile("columns genes and expressions differ in length")
    genes, values, indptr = _drop_special(genes, values, indptr)
    counts, places = _as_counts(values), _look_up(genes, index_of_token)
    if _repeats(places, indptr):
        raise DamagedFile("column genes: a cell has the same gene twice")
    return counts, places, indptr


def strings(table: pa.Table, name: str) -> np.ndarray:
    """A column as text, "" where it is missing."""
    column = _column(table, name)
    try:
        return column.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False).astype(object)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedFile(f"column {name} is {column.type}, not text") from error


def _flatten(table: pa.Table, name: str, is_right) -> tuple[np.ndarray, Int64[np.ndarray, " rows_plus_one"]]:
    """Values of a list column, and where each row starts in them."""
    lists = _column(table, name)
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)) or not is_right(lists.type.value_type):
        raise DamagedFile(f"column {name} is {lists.type}, not a list of numbers")
    if lists.null_count or lists.values.null_count:
        raise DamagedFile(f"column {name}: a value is missing")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise DamagedFile(f"there is no column {name}")
    column = table[name].combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _drop_special(genes: np.ndarray, values: np.ndarray, indptr: np.ndarray) -> tuple[np.ndarray, ...]:
    if genes.min(initial=FIRST_TOKEN_ID) >= FIRST_TOKEN_ID:
        return genes, values, indptr
    keep = genes >= FIRST_TOKEN_ID
    return genes[keep], values[keep], np.concatenate([[0], np.cumsum(keep)])[indptr]


def _as_counts(values: np.ndarray) -> Int32[np.ndarray, " nnz"]:
    with np.errstate(invalid="ignore"):  # NaN and values beyond int32 differ from their cast, and are told so
        counts = values.astype(np.int32)
    if counts.min(initial=1) < 1 or not (counts == values).all():
        raise DamagedFile("column expressions: not all values are positive integers")
    return counts


def _look_up(genes: np.ndarray, index_of_token: np.ndarray) -> Int32[np.ndarray, " nnz"]:
    known = genes.max(initial=0) < len(index_of_token)
    places = index_of_token[genes] if known else genes
    if not known or places.min(initial=0) < 0:
        raise DamagedFile("column genes: an id is not in genes.parquet")
    return places


def _repeats(genes: np.ndarray, indptr: np.ndarray) -> bool:
    """Whether a gene stands twice in a cell; a sort is needed only where the genes do not ascend."""
    ascends = genes[1:] > genes[:-1]
    starts = indptr[1:-1]
    ascends[starts[(starts > 0) & (starts < len(genes))] - 1] = True
    if ascends.all():
        return False
    cell = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((genes, cell))
    return bool(((np.diff(genes[order]) == 0) & (np.diff(cell[order]) == 0)).any())
