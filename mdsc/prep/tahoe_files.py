"""Which of Tahoe-100M's files are taken: those of some plates, and some of many."""

from collections.abc import Sequence

from mdsc.data.byte_ranges import DamagedFile, Location
from mdsc.data.shard_file import read_layout
from mdsc.errors import UserError
from mdsc.prep.file_work import on_files
from mdsc.prep.tahoe_source import TahoeSource


def choose_files(source: TahoeSource, plates: Sequence[str], max_shards: int | None, *, num_workers: int) -> list[str]:
    """Names of the files that may hold cells of these plates (all, where none is named), at most `max_shards` of them.

    A file's plates are known from its footer. The files are sorted by plate; those that are taken lie at even
    distances, so that few of them meet many plates.
    """
    files = [file for file, _ in source.files]
    if plates:
        tasks = {file: (source.location(file), size) for file, size in source.files}
        ranges = dict(on_files(plate_ranges, tasks, what="plates", num_workers=num_workers, in_threads=True))
        files = [file for file in files if any(_holds(ranges[file], plate) for plate in plates)]
        ends = {end for found in ranges.values() for pair in found or () for end in pair}
        absent = [plate for plate in plates if not any(_holds(found, plate) for found in ranges.values())]
        if absent:
            raise UserError(
                f"--plates {', '.join(absent)}: no file has cells of it; there are {', '.join(sorted(ends))}"
            )
    if max_shards is None or max_shards >= len(files):
        return files
    return [files[int((place + 0.5) * len(files) / max_shards)] for place in range(max_shards)]


def plate_ranges(file: Location, size: int) -> list[tuple[str, str]] | None:
    """First and last plate (in the order of text) of each row group; None where the footer does not tell."""
    try:
        metadata = read_layout(file, size).metadata
    except (DamagedFile, OSError) as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}; copy the file again, or leave it out") from error
    if "plate" not in metadata.schema.names:
        raise UserError(f"{file}: it has no column plate, which --plates needs")
    ranges = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = [row_group.column(place) for place in range(row_group.num_columns)]
        found = next(chunk for chunk in chunks if chunk.path_in_schema == "plate").statistics
        if found is None or not found.has_min_max:
            return None
        ranges.append((found.min, found.max))
    return ranges


def _holds(ranges: list[tuple[str, str]] | None, plate: str) -> bool:
    return ranges is None or any(first <= plate <= last for first, last in ranges)
