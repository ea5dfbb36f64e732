"""One parquet file, read a row group at a time, with every byte of it under a hash.

Parquet has no check of its own that is on by default: four of five flipped bits read back as other counts. So the file
is cut where its row groups start, and each part has a hash in the manifest; between them they cover the whole file:

    part 0 .. n-1   the row groups' bytes, from the start of one to the start of the next (the first one from byte 0)
    part n          the footer, which says where everything is; it is checked before it is believed

A row group is one read: its bytes are hashed and then decoded from memory, so what was checked is what is used.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mdsc.data.byte_ranges import DamagedFile, Location, read_range, size_of, time_of_change

MAGIC = b"PAR1"
OPEN_FOOTERS = 4096


@dataclass(frozen=True)
class Layout:
    """Where the parts of a file lie. Part g is bytes `bounds[g]` to `bounds[g + 1]`; the last one is the footer."""

    metadata: pq.FileMetaData
    bounds: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return tuple(self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups))


def part_hash(data: bytes | memoryview) -> str:
    """XXH3 of 128 bits, in hex: tells of accidents, at the speed of memory. Nobody is kept from forging a file."""
    return xxhash.xxh3_128_hexdigest(data)


def hash_parts(file: Location) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Rows of each row group of a file, and the hashes of its parts (one more than there are row groups).

    Reads the whole file once, a part at a time. `DamagedFile` where it is no parquet file.
    """
    layout = read_layout(file, size_of(file))
    return layout.rows, tuple(part_hash(read_range(file, start, stop)) for start, stop in pairwise(layout.bounds))


def read_row_group(
    file: Location, group: int, columns: Sequence[str], *, size: int, hashes: Sequence[str], verify: bool = True
) -> pa.Table:
    """The given columns of row group `group`; a column that the file does not have is not in the table.

    Args:
        size: bytes that the file should have.
        hashes: of its parts, from the manifest; empty where it was never hashed, as is a single part's.
        verify: compare the hashes of the footer and of this row group.

    Raises:
        DamagedFile: a hash differs, or the bytes do not decode.
        OSError: the file cannot be read.
    """
    hashes = hashes if verify else ()
    layout = layout_of(file, size, hashes[-1] if hashes else None, time_of_change(file))
    if not 0 <= group < layout.metadata.num_row_groups:
        raise DamagedFile(f"the file has {layout.metadata.num_row_groups} row groups")
    start, stop = layout.bounds[group : group + 2]
    expected = hashes[group] if hashes else ""

    def is_right(data: bytes) -> bool:
        return not expected or part_hash(data) == expected

    data = read_range(file, start, stop, keep_if=is_right)
    if not is_right(data):
        raise DamagedFile("its bytes are not those that were prepared (hash differs)")
    return decode(data, start, layout, group, columns)


def decode(data: bytes, start: int, layout: Layout, group: int, columns: Sequence[str]) -> pa.Table:
    """Columns of a row group out of bytes of the file, of which the first is byte `start`."""
    try:
        with pq.ParquetFile(pa.PythonFile(_Window(data, start), mode="r"), metadata=layout.metadata) as file:
            # Two columns are too few for threads: these take more time than they save.
            return file.read_row_group(group, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(str(error).splitlines()[0]) from error


def read_layout(file: Location, size: int, footer_hash: str | None = None) -> Layout:
    """Reads the footer, and checks it where its hash is known. `DamagedFile` where it is no parquet file."""
    ending = read_range(file, max(0, size - 8), size)
    if ending[4:] != MAGIC:
        raise DamagedFile("it does not end as a parquet file does")
    footer_start = size - 8 - struct.unpack("<I", ending[:4])[0]
    if footer_start < len(MAGIC):
        raise DamagedFile("its footer has an impossible length")
    footer = read_range(file, footer_start, size)
    if footer_hash is not None and part_hash(footer) != footer_hash:
        raise DamagedFile("its footer is not the one that was prepared (hash differs)")
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(str(error).splitlines()[0]) from error
    starts = [_start(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    bounds = (0, *starts[1:], footer_start, size) if starts else (0, size)
    if any(one > other for one, other in pairwise(bounds)):
        raise DamagedFile("its row groups do not follow each other in the file")
    return Layout(metadata, bounds)


# Footers are small and are asked for with each row group; a changed file has another size, hash or time.
@lru_cache(maxsize=OPEN_FOOTERS)
def layout_of(file: Location, size: int, footer_hash: str | None, changed: int) -> Layout:
    """`read_layout`, remembered; `changed` is the file's `time_of_change`."""
    return read_layout(file, size, footer_hash)


def _start(row_group: pq.RowGroupMetaData) -> int:
    """First byte of a row group."""
    columns = [row_group.column(place) for place in range(row_group.num_columns)]
    # The dictionary of a column, where there is one, precedes its data.
    pages = [[column.dictionary_page_offset, column.data_page_offset] for column in columns]
    # Some writers say 0 where there is no dictionary. A row group without columns lies nowhere.
    return min((offset for pair in pages for offset in pair if offset), default=0)


class _Window:
    """A file object that has some bytes of a larger file, at the places where they are in it."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start, self._place = memoryview(data), start, 0
        self.closed = False

    def seek(self, place: int, whence: int = 0) -> int:
        end = self._start + len(self._data)
        self._place = (0, self._place, end)[whence] + place
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> memoryview:
        first = self._place - self._start
        if first < 0:
            raise ValueError("a column lies outside of its row group")
        part = self._data[first:] if size < 0 else self._data[first : first + size]
        self._place += len(part)
        return part

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
