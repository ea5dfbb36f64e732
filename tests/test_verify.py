"""`mdsc verify`: all faults of a folder, one a line, whatever they are; nothing where there is none."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_shards import simulated_counts, write_shards

from mdsc.cli import main
from mdsc.data.manifest import load_manifest
from mdsc.data.shard_file import hash_parts
from mdsc.data.shards import ShardFolder
from mdsc.prep.verify import faults

NUM_FLIPS, NUM_CUTS = 60, 30


@pytest.fixture
def folder(tmp_path) -> ShardFolder:
    return write_shards(tmp_path / "s", simulated_counts(3600, 20), cells_per_shard=1300)


def verified(path, capsys, *options) -> tuple[int, list[str], str]:
    """Exit code, lines of faults, and what was said at the end."""
    code = main(["verify", str(path), *options])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def change(folder, edit) -> None:
    stored = json.loads((folder.path / "manifest.json").read_text())
    del stored["digest"]
    edit(stored)
    (folder.path / "manifest.json").write_text(json.dumps(stored))


@pytest.mark.parametrize("options", [[], ["--fast"], ["--num-workers", "1"]])
def test_a_good_folder_is_one_line(folder, capsys, options):
    code, lines, error = verified(folder.path, capsys, *options)
    assert (code, error) == (0, "")
    assert len(lines) == 1
    assert re.search(r"is fine \(hashes.*3 files, 5 row groups, 3,600 cells, [\d,]+ bytes", lines[0])


@pytest.mark.parametrize("fast", [False, True])
def test_each_flip_and_cut_is_found_by_name(folder, fast):
    rng = np.random.default_rng(1)
    for number in range(NUM_FLIPS + NUM_CUTS):
        shard = folder.manifest.shards[rng.integers(3)]
        path = folder.location(shard.file)
        whole = path.read_bytes()
        place = int(rng.integers(len(whole)))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if number < NUM_FLIPS else whole[:place])
        found = list(faults(ShardFolder(folder.path, folder.manifest, folder.vocabulary, verify=False), fast=fast))
        path.write_bytes(whole)
        assert found
        assert all(str(path) in fault for fault in found)
        assert len(found) == 1 or "footer" in " ".join(found), "a flip in a row group is one fault"


def test_all_faults_are_told_each_on_its_line(folder, capsys):
    first, second, third = (folder.location(shard.file) for shard in folder.manifest.shards)
    damaged = bytearray(first.read_bytes())
    for group in range(2):  # a bit of either row group
        damaged[pq.read_metadata(first).row_group(group).column(0).data_page_offset + 40] ^= 16
    first.write_bytes(damaged)
    second.write_bytes(second.read_bytes()[:-9])
    third.unlink()
    code, lines, error = verified(folder.path, capsys)
    assert code == 2
    assert [line.partition(": ")[0] for line in lines] == [
        f"{first}, row group 0",
        f"{first}, row group 1",
        f"{second} is truncated",
        f"{third} is missing, though {folder.path}/manifest.json lists it",
    ]
    assert "has 4 faults" in error


def test_rows_that_differ_from_the_manifest_are_told(folder, capsys):
    change(folder, lambda stored: stored["shards"][1].update(row_groups=[1000, 299]))
    code, lines, _ = verified(folder.path, capsys)
    assert code == 2
    assert len(lines) == 1
    assert "its row groups have 1000, 300 rows, and should have 1000, 299" in lines[0]


def test_a_folder_without_hashes_is_checked_for_what_must_hold_of_cells(folder, capsys):
    path = folder.location(folder.manifest.shards[0].file)
    table = pq.read_table(path)
    expressions = table["expressions"].to_pylist()
    expressions[1100][0] = -1.0
    column = pa.array(expressions, table.schema.field("expressions").type)
    table = table.set_column(table.column_names.index("expressions"), "expressions", column)
    pq.write_table(table, path, row_group_size=1000)

    def edit(stored):
        for shard in stored["shards"]:
            shard["hashes"] = []
        stored["shards"][0]["bytes"] = path.stat().st_size

    change(folder, edit)
    code, lines, _ = verified(folder.path, capsys)
    assert code == 2
    assert lines == [
        f"{path}, row group 1: column expressions: not all values are positive integers",
        "3 of 3 files have no hashes in the manifest: only what must hold of cells is checked",
    ]
    code, lines, _ = verified(folder.path, capsys, "--fast")
    assert code == 0
    assert "their bytes are not checked" in lines[0]


def test_what_was_hashed_but_never_right_is_told(folder, capsys):
    """Hashes say that bytes are unchanged; that they are cells is checked besides."""
    path = folder.location(folder.manifest.shards[0].file)
    pq.write_table(pq.read_table(path).drop_columns(["drug"]), path, row_group_size=1000)
    rows, hashes = hash_parts(path)
    new = {"bytes": path.stat().st_size, "row_groups": list(rows), "hashes": list(hashes)}
    change(folder, lambda stored: stored["shards"][0].update(new))
    assert load_manifest(folder.path).shards[0].hashes == hashes
    assert verified(folder.path, capsys, "--fast")[0] == 0
    code, lines, _ = verified(folder.path, capsys)
    assert code == 2
    assert lines == [f"{path}, row group {group}: there is no column drug" for group in range(2)]


def test_mistakes_are_messages(folder, tmp_path, capsys):
    assert "no folder" in verified(tmp_path / "nowhere", capsys)[2]
    assert "--num-workers is 0" in verified(folder.path, capsys, "--num-workers", "0")[2]
