"""Shard folders: what is written comes back, and every kind of damage is told by file and row group."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from mdsc.data.bit_masks import bit_mask
from mdsc.data.genes import GeneVocabulary
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.shard_writer import ShardWriter
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError

GENES = 40


def some_cells(num_cells, seed=0):
    counts = sp.csr_matrix(np.random.default_rng(seed).poisson(0.4, (num_cells, GENES)).astype(np.int32))
    obs = {"drug": [f"drug{i % 3}" for i in range(num_cells)], "line": [None] * num_cells}
    return counts, obs, [f"cell{seed}-{i}" for i in range(num_cells)]


def write(folder, portions=(700, 900, 650), **options):
    vocabulary = GeneVocabulary.of([f"G{i}" for i in range(GENES)])
    with ShardWriter(folder, vocabulary, ("drug", "line"), **options) as writer:
        for seed, size in enumerate(portions):
            writer.write("train", *some_cells(size, seed))
        writer.write("heldout", *some_cells(50, 99))
    return ShardFolder.open(folder)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "shards")


def test_round_trip(folder):
    train = sp.vstack([some_cells(size, seed)[0] for seed, size in enumerate((700, 900, 650))], format="csr")
    adata = folder.to_anndata("train")
    assert (train != adata.X).nnz == 0
    assert adata.X.dtype == np.int32
    assert adata.obs_names[0] == "cell0-0"
    assert adata.obs_names[-1] == "cell2-649"
    assert adata.obs["drug"].tolist()[:4] == ["drug0", "drug1", "drug2", "drug0"]
    assert set(adata.obs["line"]) == {""}
    assert adata.var_names[7] == "G7"
    assert (some_cells(50, 99)[0] != folder.to_anndata("heldout").X).nnz == 0


@pytest.mark.parametrize("max_cells", [7, 1000, 1003, 9999])
def test_the_first_cells(folder, max_cells: int, monkeypatch):
    whole = folder.to_anndata("train")[:max_cells]
    read = []
    monkeypatch.setattr(
        ShardFolder, "read", lambda self, ref, read_one=ShardFolder.read: read.append(ref) or read_one(self, ref)
    )
    first = folder.to_anndata("train", max_cells=max_cells)
    assert first.obs.equals(whole.obs)
    assert (first.X != whole.X).nnz == 0
    assert len(read) == min(3, -(-max_cells // 1000)), "row groups beyond are not read"


def test_row_groups_of_a_thousand(folder):
    assert [ref.rows for ref in folder.row_groups()] == [1000, 1000, 250]
    assert folder.num_cells("train") == 2250
    assert folder.num_cells("heldout") == 50
    assert folder.splits == ("train", "heldout")
    group = folder.read(folder.row_groups()[1], columns=["drug"])
    assert list(group.conditions) == ["drug"]
    assert len(group.cell_ids) == 1000
    assert group.counts.dtype == np.int32
    assert group.gene_index.dtype == np.int32
    assert group.indptr.dtype == np.int64


@pytest.mark.parametrize(
    ("cells_per_shard", "expected"),
    [
        pytest.param(1200, [(1000, 200), (1000, 50)], id="not-a-multiple"),
        pytest.param(1000, [(1000,), (1000,), (250,)], id="one-group-each"),
        pytest.param(600, [(600,), (600,), (600,), (450,)], id="less-than-a-group"),
        pytest.param(1125, [(1000, 125), (1000, 125)], id="fills-the-last"),
    ],
)
def test_shards_roll_over(tmp_path, cells_per_shard, expected):
    folder = write(tmp_path / "shards", cells_per_shard=cells_per_shard)
    assert [shard.row_groups for shard in folder.manifest.shards if shard.split == "train"] == expected
    ids = np.concatenate([folder.read(ref).cell_ids for ref in folder.row_groups()])
    assert ids.tolist() == [f"cell{seed}-{i}" for seed, size in enumerate((700, 900, 650)) for i in range(size)]


def test_shards_do_not_depend_on_the_portions_they_came_in(tmp_path):
    one, other = write(tmp_path / "a", (2000,)), tmp_path / "b"
    counts, obs, ids = some_cells(2000)
    with ShardWriter(other, one.vocabulary, ("drug", "line")) as writer:
        for part in (slice(0, 3), slice(3, 1502), slice(1502, 2000)):
            writer.write("train", counts[part], {name: column[part] for name, column in obs.items()}, ids[part])
        writer.write("heldout", *some_cells(50, 99))
    other = ShardFolder.open(other)
    for ref in one.row_groups():
        assert (one.read(ref).counts == other.read(ref).counts).all()
        assert (one.read(ref).gene_index == other.read(ref).gene_index).all()


def test_statistics_are_those_of_the_training_cells(folder):
    dense = folder.to_anndata("train").X.toarray()
    np.testing.assert_allclose(folder.statistics.detection_rate, (dense > 0).mean(0))
    np.testing.assert_allclose(folder.statistics.mean_count, dense.mean(0))
    np.testing.assert_allclose(folder.statistics.mean_log1p, np.log1p(dense).mean(0))


def test_digest_changes_with_the_manifest(folder, tmp_path):
    assert len(folder.digest) == 64
    assert ShardFolder.open(folder.path).digest == folder.digest
    assert write(tmp_path / "other", (100,)).digest != folder.digest


def test_nothing_is_left_of_a_failed_write(tmp_path):
    kept = write(tmp_path / "shards").digest
    counts, obs, ids = some_cells(1500)
    obs["line"] = [1.5] * 1500  # no strings: the second portion fails
    vocabulary = GeneVocabulary.of([f"G{i}" for i in range(GENES)])
    with pytest.raises(TypeError), ShardWriter(tmp_path / "shards", vocabulary, ("line",)) as writer:  # noqa: PT012
        writer.write("train", *some_cells(1500))
        writer.write("train", counts, obs, ids)
    assert ShardFolder.open(tmp_path / "shards").digest == kept
    with (
        pytest.raises(UserError, match="no cell is of split 'train'"),
        ShardWriter(tmp_path / "new", GeneVocabulary.of(["A"])) as writer,
    ):
        writer.write("test", sp.csr_matrix(np.ones((2, 1), np.int32)), {}, ["a", "b"])
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("two years")
    with pytest.raises(UserError, match="holds other files"):
        ShardWriter(tmp_path, GeneVocabulary.of(["A"]))
    with pytest.raises(UserError, match="is a file"):
        ShardWriter(tmp_path / "thesis.txt", GeneVocabulary.of(["A"]))


def test_splits_that_cannot_name_files_are_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"split '\.\./up'"),
        ShardWriter(tmp_path / "a", GeneVocabulary.of(["A"])) as writer,
    ):
        writer.write("../up", sp.csr_matrix((1, 1), dtype=np.int32), {}, ["a"])


def test_missing_folders_manifests_and_shards_are_told(folder, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere: make shards with data_prep/h5ad.py"):
        ShardFolder.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folder of shards"):
        ShardFolder.open(tmp_path)
    with pytest.raises(UserError, match="no cells of split 'test': it has train, heldout"):
        folder.num_cells("test")
    shard = folder.path / "train-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    with pytest.raises(UserError, match=r"train-00000\.parquet is truncated.* copy the file again"):
        ShardFolder.open(folder.path)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000\.parquet is missing"):
        ShardFolder.open(folder.path)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="no-object"),
        pytest.param("{}", id="no-keys"),
        pytest.param("null", id="null"),
        pytest.param('{"format": "mdsc-shards", "version": 3, "shards": [{}]}', id="bare-shard"),
        pytest.param('{"format": "mdsc-shards", "version": 99, "shards": []}', id="newer"),
    ],
)
def test_damaged_manifests_are_told(folder, text):
    (folder.path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardFolder.open(folder.path)


@pytest.mark.parametrize("place", ["", "shards"])
def test_an_unknown_entry_of_a_manifest_is_named(folder, place):
    path = folder.path / "manifest.json"
    stored = json.loads(path.read_text())
    (stored[place][0] if place else stored)["colour"] = "red"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(wrong entry: 'colour'\)"):
        ShardFolder.open(folder.path)
    with pytest.raises(UserError, match=r"manifest\.json is a file: give a folder of shards"):
        ShardFolder.open(path)


def test_a_flipped_bit_of_a_manifest_is_told_or_means_nothing(folder):
    """A manifest may be mostly masks of held-out rows, where a bit is a cell that would be trained on."""
    shards = folder.manifest.shards
    masks = tuple(bit_mask(np.arange(rows) % 7 == 0) for rows in shards[0].row_groups)
    replace(folder.manifest, shards=(replace(shards[0], heldout=masks), *shards[1:])).save(folder.path)
    digest, path = ShardFolder.open(folder.path).digest, folder.path / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 7)]) + whole[place + 1 :])
        try:
            assert ShardFolder.open(folder.path).digest == digest
        except UserError:
            continue


def test_a_damaged_shard_of_the_right_size_is_told(folder):
    shard = folder.path / "train-00000.parquet"
    damaged = bytearray(shard.read_bytes())
    damaged[100:2000] = bytes(1900)
    shard.write_bytes(damaged)
    with pytest.raises(UserError, match=r"train-00000\.parquet, row group 0"):
        folder.read(folder.row_groups()[0])


def rewritten(folder, genes, expressions):
    """The first shard with these rows in place of its own."""
    path = folder.path / "train-00000.parquet"
    table = {
        "genes": pa.array(genes, pa.list_(pa.int64())),
        "expressions": pa.array(expressions, pa.list_(pa.float32())),
    }
    rest = {"cell_id": [f"c{i}" for i in range(len(genes))], "drug": ["a"] * len(genes), "line": ["b"] * len(genes)}
    pq.write_table(pa.table(table | rest), path)
    manifest = json.loads((folder.path / "manifest.json").read_text())
    del manifest["digest"]  # as of a manifest that was written by hand
    manifest["shards"][0] |= {"bytes": path.stat().st_size, "row_groups": [len(genes)], "hashes": []}
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    return ShardFolder.open(folder.path)


def test_cls_entries_of_tahoe_are_dropped(folder):
    folder = rewritten(folder, [[1, 3, 5], [1], [], [1, 4]], [[-2, 7, 1], [-2], [], [-2, 9]])
    group = folder.read(folder.row_groups()[0])
    assert group.counts.tolist() == [7, 1, 9]
    assert group.gene_index.tolist() == [0, 2, 1]
    assert group.indptr.tolist() == [0, 2, 2, 2, 3]


def test_genes_in_any_order_are_read(folder):
    folder = rewritten(folder, [[5, 3], [], [9, 3, 4], []], [[1, 2], [], [3, 4, 5], []])
    assert folder.to_anndata().X[2].toarray()[0, [0, 1, 6]].tolist() == [4, 5, 3]


@pytest.mark.parametrize(
    ("genes", "expressions", "told"),
    [
        pytest.param([[3, 4]], [[1, 0]], "positive integers", id="zero"),
        pytest.param([[3, 4]], [[1, -1]], "positive integers", id="negative"),
        pytest.param([[3, 4]], [[1, 0.69]], "positive integers", id="fraction"),
        pytest.param([[3, 4]], [[1, np.nan]], "positive integers", id="nan"),
        pytest.param([[3, 4]], [[1, 3e9]], "positive integers", id="beyond-int32"),
        pytest.param([[3, 43]], [[1, 1]], "not in genes.parquet", id="unknown-gene"),
        pytest.param([[3, 3]], [[1, 1]], "same gene twice", id="repeated-gene"),
        pytest.param([[], [5, 4, 5]], [[], [1, 1, 1]], "same gene twice", id="repeated-gene-unsorted"),
        pytest.param([[3, 4], [3]], [[1], [1, 1]], "differ in length", id="lengths"),
        pytest.param([[3], None], [[1], [1]], "column genes: a value is missing", id="null-row"),
    ],
)
def test_wrong_cells_are_told(folder, genes, expressions, told):
    folder = rewritten(folder, genes, expressions)
    with pytest.raises(UserError, match=rf"train-00000\.parquet, row group 0.*{told}"):
        folder.read(folder.row_groups()[0])


def test_rows_and_columns_that_differ_from_the_manifest_are_told(folder):
    folder = rewritten(folder, [[3], [4]], [[1], [1]])
    with pytest.raises(UserError, match="no condition column plate: it has drug, line"):
        folder.read(folder.row_groups()[0], columns=["plate"])
    manifest = json.loads((folder.path / "manifest.json").read_text())
    manifest["shards"][0]["row_groups"] = [3]
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    folder = ShardFolder.open(folder.path)
    with pytest.raises(UserError, match="it has 2 rows and should have 3"):
        folder.read(folder.row_groups()[0])


def test_conditions_have_the_levels_of_the_training_cells(folder):
    assert folder.manifest.conditions == {"drug": ("drug0", "drug1", "drug2"), "line": ()}


def with_manifest(folder, change):
    """The same files under another manifest."""
    stored = json.loads((folder.path / "manifest.json").read_text())
    del stored["digest"]
    change(stored)
    (folder.path / "manifest.json").write_text(json.dumps(stored))
    return ShardFolder.open(folder.path)


def test_rows_of_a_row_group_can_be_held_out(folder):
    whole = [folder.read(ref) for ref in folder.row_groups()]
    ends = np.zeros(1000, bool)
    ends[[0, 500, 999]] = True
    masks = [bit_mask(ends), "", bit_mask(np.ones(250, bool))]
    folder = with_manifest(folder, lambda stored: stored["shards"][0].update(heldout=masks))
    assert [ref.rows for ref in folder.row_groups("train")] == [997, 1000]
    assert [ref.rows for ref in folder.row_groups("heldout")] == [3, 250, 50]
    assert folder.num_cells("train") == 1997
    part = folder.read(folder.row_groups("heldout")[0])
    assert part.cell_ids.tolist() == whole[0].cell_ids[[0, 500, 999]].tolist()
    assert part.conditions["drug"].tolist() == whole[0].conditions["drug"][[0, 500, 999]].tolist()
    rows = [slice(whole[0].indptr[row], whole[0].indptr[row + 1]) for row in (0, 500, 999)]
    assert part.counts.tolist() == np.concatenate([whole[0].counts[row] for row in rows]).tolist()
    assert part.gene_index.tolist() == np.concatenate([whole[0].gene_index[row] for row in rows]).tolist()
    assert np.diff(part.indptr).tolist() == [row.stop - row.start for row in rows]
    trained = {name for ref in folder.row_groups("train") for name in folder.read(ref).cell_ids}
    assert not trained & {name for ref in folder.row_groups("heldout") for name in folder.read(ref).cell_ids}


def test_conditions_can_follow_from_a_column(folder):
    def change(stored):
        stored["lookups"] = {"dose": {"column": "drug", "values": {"drug0": "0.5 uM", "drug2": "5 uM"}}}
        stored["conditions"] = {"dose": ["0.5 uM", "5 uM"]}

    group = with_manifest(folder, change).read(RowGroupRef("train-00000.parquet", 0, 1000))
    assert group.conditions["dose"][:4].tolist() == ["0.5 uM", "", "5 uM", "0.5 uM"]
    assert list(group.conditions) == ["dose"]


def test_data_may_move(folder, tmp_path):
    ids = folder.read(folder.row_groups()[0]).cell_ids
    (tmp_path / "elsewhere").mkdir()
    for shard in folder.manifest.shards:
        (folder.path / shard.file).rename(tmp_path / "elsewhere" / shard.file)
    moved = with_manifest(folder, lambda stored: stored.update(root=str(tmp_path / "elsewhere")))
    assert moved.digest == folder.digest
    assert (moved.read(moved.row_groups()[0]).cell_ids == ids).all()
