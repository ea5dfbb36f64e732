"""Every byte of a shard is under a hash: whatever flips or is cut off is found, and named."""

import re

import numpy as np
import pytest
from simulated_shards import simulated_counts, write_shards

from mdsc.data.shard_file import DamagedFile, hash_parts, read_range, read_row_group
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError

NUM_FLIPS, NUM_CUTS = 500, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ShardFolder:
    return write_shards(tmp_path_factory.mktemp("shards") / "s", simulated_counts(2600, 30), cells_per_shard=1300)


def copies(folder: ShardFolder, tmp_path, damage):
    """The folder under ever new names (footers are kept by name), each time with one file damaged."""
    whole = {shard.file: (folder.path / shard.file).read_bytes() for shard in folder.manifest.shards}
    rest = {name: (folder.path / name).read_bytes() for name in ("manifest.json", "genes.parquet")}
    rng = np.random.default_rng(0)
    for number, (file, content) in enumerate(damage(rng, whole)):
        copy = tmp_path / str(number)
        copy.mkdir()
        for name, data in (rest | whole | {file: content}).items():
            (copy / name).write_bytes(data)
        yield copy, file, content


def read_all(path, **options) -> None:
    folder = ShardFolder.open(path, **options)
    for ref in folder.row_groups():
        folder.read(ref)


def flips(rng, whole):
    for _ in range(NUM_FLIPS):
        file = rng.choice(list(whole))
        content = bytearray(whole[file])
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        yield str(file), bytes(content)


def cuts(rng, whole):
    for _ in range(NUM_CUTS):
        file = rng.choice(list(whole))
        yield str(file), whole[file][: rng.integers(len(whole[file]))]


def test_every_flipped_bit_is_found_and_named(folder, tmp_path):
    silent = 0
    for copy, file, content in copies(folder, tmp_path, flips):
        with pytest.raises(UserError, match=re.escape(f"{copy / file}, row group ")) as told:
            read_all(copy)
        group = int(re.search(r"row group (\d+)", str(told.value))[1])
        first_wrong = next(
            place
            for place, (one, other) in enumerate(zip(content, (folder.path / file).read_bytes(), strict=True))
            if one != other
        )
        starts = bounds(folder.path / file)
        part = int(np.searchsorted(starts, first_wrong, side="right")) - 1
        assert group == (part if part < len(starts) - 1 else 0), "a footer is read with the first row group"
        try:
            read_all(copy, verify=False)
            silent += 1
        except UserError:
            pass
    assert silent > NUM_FLIPS / 5, "without hashes many flips would not be told, or this test shows nothing"


def bounds(path) -> list[int]:
    """Where the row groups and the footer begin, as pyarrow tells it."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    columns = [metadata.row_group(group).column(0) for group in range(metadata.num_row_groups)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return [0, *starts[1:], path.stat().st_size - metadata.serialized_size - 8]


def test_every_truncation_is_found_and_named(folder, tmp_path):
    for copy, file, _ in copies(folder, tmp_path, cuts):
        with pytest.raises(UserError, match=rf"{re.escape(str(copy / file))} is truncated"):
            ShardFolder.open(copy)
        # Also where it is cut off after it was opened.
        cut = ShardFolder(copy, folder.manifest, folder.vocabulary)
        refs = [ref for ref in cut.row_groups() if ref.file == file]
        with pytest.raises(UserError, match=re.escape(f"{copy / file}, row group {len(refs) - 1}")):
            cut.read(refs[-1])


def test_hashes_cover_the_whole_file(folder):
    path = folder.path / folder.manifest.shards[0].file
    rows, hashes = hash_parts(path)
    assert rows == (1000, 300)
    assert hashes == folder.manifest.shards[0].hashes
    assert len(hashes) == len(rows) + 1
    assert read_range(path, 0, 9) + read_range(path, 9, path.stat().st_size) == path.read_bytes()


def test_a_file_that_is_longer_or_no_parquet_is_told(folder, tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1")
    with pytest.raises(DamagedFile, match="impossible length"):
        hash_parts(path)
    path.write_text("a text")
    with pytest.raises(DamagedFile, match="does not end as a parquet file"):
        hash_parts(path)
    shard = folder.manifest.shards[0]
    with pytest.raises(DamagedFile, match="has 2 row groups"):
        read_row_group(folder.path / shard.file, 2, ["genes"], size=shard.bytes, hashes=shard.hashes)
