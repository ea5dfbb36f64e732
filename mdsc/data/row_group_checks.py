"""What is checked of every row group that is decoded, whoever wrote it; each fault is a `DamagedFile` with its column.

Hashes tell of changed bytes. These checks tell of files that were never right, and of files that have no hashes.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from mdsc.data.compiled import compiled
from mdsc.data.genes import FIRST_TOKEN_ID
from mdsc.data.shard_file import DamagedFile

CLS_TOKEN_ID, CLS_VALUE = 1, -2
"""Tahoe-100M starts each cell with this entry."""
INT32_END = np.float32(2.0**31)
COMPILED_TYPES = {("int64", "float32"), ("int32", "uint16")}
"""Of genes and expressions: the published ones and those of compact shards."""


def cell_entries(
    table: pa.Table, index_of_token: Int32[np.ndarray, " ids"]
) -> tuple[Int32[np.ndarray, " nnz"], Int32[np.ndarray, " nnz"], Int64[np.ndarray, " rows_plus_one"]]:
    """Counts, places in the vocabulary and row starts out of the list columns `expressions` and `genes`.

    An entry of id 1 and value -2 at the start of a cell (Tahoe's CLS) is dropped.
    """
    genes, indptr = _flatten(table, "genes", pa.types.is_integer)
    values, value_indptr = _flatten(table, "expressions", _is_number)
    if not np.array_equal(indptr, value_indptr):
        raise DamagedFile("columns genes and expressions differ in length")
    if (found := _entries_if_plain(genes, values, indptr, index_of_token)) is not None:
        return found
    genes, values, indptr = _drop_special(genes, values, indptr)
    counts, places = _as_counts(values), _look_up(genes, index_of_token)
    if _repeats(places, indptr):
        raise DamagedFile("column genes: a cell has the same gene twice")
    return counts, places, indptr


def strings(table: pa.Table, name: str) -> np.ndarray:
    """A column as text, "" where it is missing."""
    column = _column(table, name)
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False).astype(object)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        fault = "has text that is not UTF-8" if is_text else f"is {column.type}, not text"
        raise DamagedFile(f"column {name} {fault}") from error


def first_line(error: Exception) -> str:
    """What an exception says, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _flatten(table: pa.Table, name: str, is_right) -> tuple[np.ndarray, Int64[np.ndarray, " rows_plus_one"]]:
    """Values of a list column, and where each row starts in them."""
    column = _column(table, name)
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not is_right(kind.value_type):
        raise DamagedFile(f"column {name} is {kind}, not a list of numbers")
    # Chunk by chunk: a row group may have more entries than the 32-bit offsets of one list array can count.
    values, lengths = [np.zeros(0, kind.value_type.to_pandas_dtype())], [np.zeros(0, np.int64)]
    for lists in column.chunks:
        offsets = lists.offsets.to_numpy().astype(np.int64)
        entries = lists.values[offsets[0] : offsets[-1]]
        if lists.null_count or entries.null_count:
            raise DamagedFile(f"column {name}: a value is missing")
        values.append(entries.to_numpy())
        lengths.append(np.diff(offsets))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return values[-1] if len(values) == 2 else np.concatenate(values), indptr


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if (number := table.column_names.count(name)) != 1:
        raise DamagedFile(f"there is no column {name}" if number == 0 else f"there are {number} columns {name}")
    return table[name]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _entries_if_plain(
    genes: np.ndarray, values: np.ndarray, indptr: np.ndarray, index_of_token: Int32[np.ndarray, " ids"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`cell_entries` in one compiled pass; None where numba is missing, or for whatever takes a second look."""
    loop = compiled(_plain_loop)
    if loop is None or (genes.dtype.name, values.dtype.name) not in COMPILED_TYPES:
        return None
    counts, places = np.empty(len(genes), dtype=np.int32), np.empty(len(genes), dtype=np.int32)
    kept = np.zeros_like(indptr)
    # Ids ascend: if the last one has a place as if none were left out, none is.
    is_shift = len(index_of_token) > 0 and bool(index_of_token[-1] == len(index_of_token) - 1 - FIRST_TOKEN_ID)
    if not loop(genes, values, indptr, index_of_token, is_shift, counts, places, kept):
        return None
    return counts[: kept[-1]], places[: kept[-1]], kept


def _plain_loop(genes, values, indptr, index_of_token, is_shift, counts, places, kept):
    """Fill the last three (`kept[0]` is 0); false where an entry is wrong, or the genes of a cell do not ascend.

    A cell is passed over several times, each time so simply that a compiler does many entries at once.
    """
    num_ids, done = len(index_of_token), 0
    for row in range(len(indptr) - 1):
        start, end = indptr[row], indptr[row + 1]
        if start < end and genes[start] == CLS_TOKEN_ID and values[start] == CLS_VALUE:
            start += 1
        gene, value = genes[start:end], values[start:end]
        count, place = counts[done : done + len(gene)], places[done : done + len(gene)]
        lowest = highest = np.int64(FIRST_TOKEN_ID)
        for entry in range(len(gene)):
            lowest, highest = min(lowest, gene[entry]), max(highest, gene[entry])
        wrong = np.int32(lowest < FIRST_TOKEN_ID) | np.int32(highest >= num_ids)
        for entry in range(len(gene)):
            # A comparison with NaN is false.
            wrong |= np.int32(not value[entry] >= 1) | np.int32(not value[entry] < INT32_END)
        if wrong:
            return False
        for entry in range(len(gene)):
            count[entry] = np.int32(value[entry])
            wrong |= np.int32(np.float32(count[entry]) != value[entry])
        if is_shift:
            for entry in range(len(gene)):
                place[entry] = np.int32(gene[entry]) - FIRST_TOKEN_ID
        else:
            for entry in range(len(gene)):
                place[entry] = index_of_token[np.uint64(gene[entry])]  # unsigned: not looked at for being negative
        wrong |= np.int32(len(place) > 0 and place[0] < 0)  # unknown
        for entry in range(1, len(gene)):
            wrong |= np.int32(place[entry] <= place[entry - 1])
        if wrong:
            return False
        done += len(gene)
        kept[row + 1] = done
    return True


def _drop_special(genes: np.ndarray, values: np.ndarray, indptr: np.ndarray) -> tuple[np.ndarray, ...]:
    """Without Tahoe's CLS entries. Any other id below the genes' is damage, and `_look_up` says so."""
    if genes.min(initial=FIRST_TOKEN_ID) >= FIRST_TOKEN_ID:
        return genes, values, indptr
    starts = indptr[:-1][indptr[:-1] < indptr[1:]]
    keep = np.ones(len(genes), dtype=bool)
    keep[starts] = (genes[starts] != CLS_TOKEN_ID) | (values[starts] != CLS_VALUE)
    return genes[keep], values[keep], np.concatenate([[0], np.cumsum(keep)])[indptr]


def _as_counts(values: np.ndarray) -> Int32[np.ndarray, " nnz"]:
    with np.errstate(invalid="ignore"):  # NaN and values beyond int32 differ from their cast, and are told so
        counts = values.astype(np.int32)
    if counts.min(initial=1) < 1 or not (counts == values).all():
        raise DamagedFile("column expressions: not all values are positive integers")
    return counts


def _look_up(genes: np.ndarray, index_of_token: Int32[np.ndarray, " ids"]) -> Int32[np.ndarray, " nnz"]:
    # A negative id would count from the end of the table.
    if len(genes) == 0 or (genes.min() >= 0 and genes.max() < len(index_of_token)):
        places = index_of_token[genes]
        if places.min(initial=0) >= 0:
            return places
    wrong = next(int(gene) for gene in genes if not (0 <= gene < len(index_of_token)) or index_of_token[gene] < 0)
    if 0 <= wrong < FIRST_TOKEN_ID:
        raise DamagedFile(
            f"column genes: id {wrong} is no gene (id {CLS_TOKEN_ID} with value {CLS_VALUE} may start a cell, no other)"
        )
    raise DamagedFile(f"column genes: an id is not in genes.parquet ({wrong})")


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
