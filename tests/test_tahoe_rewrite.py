"""Compact shards of Tahoe's cells: fewer bytes, the same tokens."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tahoe_folder import first_batches, ids_and_conditions, prepared, same, small_tahoe
from test_tahoe_prep import change_first_file

from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.tahoe import TahoeConfig, prepare_tahoe

RULE = {"heldout_fraction": 0.1, "heldout_by": (("drug", "DMSO_TF"),)}


def rewritten(source, output, **options) -> tuple[ShardFolder, list[str]]:
    return prepare_tahoe(TahoeConfig(source=str(source), output_dir=output, rewrite=True, num_workers=1, **options))


@pytest.mark.parametrize("options", [{}, {"plates": ("plate2", "plate10")}], ids=["all", "some-plates"])
def test_tokens_are_those_of_the_original(tmp_path, options):
    source = small_tahoe(tmp_path / "t")
    original = prepared(source, tmp_path / "original", **RULE, **options)
    compact, lines = rewritten(source, tmp_path / "compact", **RULE, **options)
    assert any("bytes a cell before" in line for line in lines)
    for split in ("train", "heldout"):
        assert ids_and_conditions(compact, split) == ids_and_conditions(original, split)
    if not options:  # else row groups without a chosen cell are left out, and the plan is another one
        assert same(first_batches(original), first_batches(compact))
    assert (compact.statistics.mean_count == original.statistics.mean_count).all()
    (source / "data").rename(tmp_path / "gone")
    assert ids_and_conditions(ShardFolder.open(tmp_path / "compact"), "train"), "it needs no original"


def test_the_form(tmp_path):
    source = small_tahoe(tmp_path / "t", rows_per_file=1300, rows_per_group=1250)
    folder, _ = rewritten(source, tmp_path / "s", heldout_fraction=0.3)
    (shard,) = folder.manifest.shards
    file = pq.ParquetFile(tmp_path / "s" / shard.file)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [720]
    types = {name: file.schema_arrow.field(name).type.value_type for name in ("genes", "expressions")}
    assert types == {"genes": pa.int32(), "expressions": pa.uint16()}
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert min(min(genes) for genes in file.read(["genes"])["genes"].to_pylist() if genes) >= 3
    assert file.schema_arrow.names[2:] == ["BARCODE_SUB_LIB_ID", "drug", "cell_line_id", "plate", "sample"]
    assert shard.hashes


def test_large_row_groups_are_cut(tmp_path):
    source = small_tahoe(tmp_path / "t", rows_per_group=720, rows_per_file=720)
    from mdsc.prep import tahoe_rewrite

    original = prepared(source, tmp_path / "o", **RULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tahoe_rewrite, "ROWS_PER_GROUP", 250)
        folder, _ = rewritten(source, tmp_path / "s", **RULE)
    assert folder.manifest.shards[0].row_groups == (250, 250, 220)
    for split in ("train", "heldout"):
        assert ids_and_conditions(folder, split) == ids_and_conditions(original, split)


def test_counts_beyond_uint16_are_kept(tmp_path):
    source = small_tahoe(tmp_path / "t")

    def large(column):
        rows = column.to_pylist()
        rows[150][1] = 70_000.0
        return pa.array(rows, column.type)

    change_first_file(source, "expressions", large)
    folder, _ = rewritten(source, tmp_path / "s")
    types = [pq.read_schema(tmp_path / "s" / s.file).field("expressions").type for s in folder.manifest.shards]
    assert [str(kind.value_type) for kind in types] == ["int32", "uint16", "uint16"]
    assert max(folder.read(ref).counts.max() for ref in folder.row_groups()) == 70_000


def test_an_interrupted_rewriting_goes_on_and_damage_is_told(tmp_path, monkeypatch):
    source = small_tahoe(tmp_path / "t")
    whole, _ = rewritten(source, tmp_path / "whole")
    from mdsc.prep import tahoe

    written = []

    def write(file, *others, real=tahoe.rewrite_file):
        written.append(file.name[:11])
        if len(written) == 2:
            raise KeyboardInterrupt
        return real(file, *others)

    monkeypatch.setattr(tahoe, "rewrite_file", write)
    with pytest.raises(KeyboardInterrupt):
        rewritten(source, tmp_path / "s")
    assert rewritten(source, tmp_path / "s")[0].digest == whole.digest
    assert written == ["train-00000", "train-00001", "train-00001", "train-00002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t", "whole"]

    def repeated(column):
        rows = column.to_pylist()
        rows[240][2] = rows[240][1]
        return pa.array(rows, column.type)

    change_first_file(source, "genes", repeated)
    with pytest.raises(UserError, match=r"train-00000.*row group 2: column genes: a cell has the same gene twice"):
        rewritten(source, tmp_path / "s")
    assert ShardFolder.open(tmp_path / "s").digest == whole.digest
    assert np.isfinite(whole.statistics.mean_count).all()
