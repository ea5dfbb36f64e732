"""Tahoe-100M's format as it is published: what the files say comes through, and their traps do not spring."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shared_data import shared_file
from tahoe_folder import CELLS_OF_PLATE, first_batches, ids_and_conditions, prepared, published, small_tahoe
from tahoe_format import SCHEMA, SideTables, write_tahoe

from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.tahoe import TahoeConfig, prepare_tahoe
from mdsc.prep.tahoe_metadata import SideTables as ReadTables
from mdsc.prep.tahoe_metadata import dose_of, stripped
from mdsc.training.command import main as train


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small_tahoe(tmp_path_factory.mktemp("tahoe") / "published")


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory) -> ShardFolder:
    return prepared(source, tmp_path_factory.mktemp("tahoe") / "shards")


def checksums(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns) for path in files}


def test_every_cell_is_there_as_published_and_nothing_is_written_beside(source, folder):
    cells = published(source)
    assert folder.num_cells() == len(cells) == sum(CELLS_OF_PLATE.values())
    for ref in folder.row_groups():
        group = folder.read(ref)
        for row, name in enumerate(group.cell_ids):
            part = slice(group.indptr[row], group.indptr[row + 1])
            assert (group.counts[part] == cells.loc[name, "expressions"][1:]).all()
            assert (folder.vocabulary.token_ids[group.gene_index[part]] == cells.loc[name, "genes"][1:]).all()
    assert sorted(path.name for path in folder.path.iterdir()) == ["genes.parquet", "manifest.json"]
    assert folder.manifest.root == str(source)


def test_the_source_is_not_touched(source, tmp_path):
    before = checksums(source)
    prepared(source, tmp_path / "s", heldout_fraction=0.1, plates=("plate1",))
    assert checksums(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"], "what was kept for another try is gone"


def test_the_cls_entry_is_no_count(source, folder):
    counts = np.concatenate([folder.read(ref).counts for ref in folder.row_groups()])
    assert counts.min() == 1
    assert len(counts) == sum(len(genes) - 1 for genes in published(source)["genes"])


def test_dose_comes_from_the_sample(source, folder):
    told = pd.read_parquet(source / "metadata/sample_metadata.parquet").set_index("sample")["drugname_drugconc"]
    cells = published(source)
    for name, conditions in ids_and_conditions(folder, "train").items():
        amount = told[cells.loc[name, "sample"]].split(", ")[1]
        assert conditions["dose"] == f"{float(amount):g} uM"
    assert folder.manifest.conditions["dose"] == ("0 uM", "0.05 uM", "0.5 uM", "5 uM")


@pytest.mark.parametrize(
    ("text", "dose"),
    [
        ("[('Infigratinib', 0.05, 'uM')]", "0.05 uM"),
        ("[('Trametinib (DMSO_TF solvate)', 5.0, 'uM')]", "5 uM"),
        ("[('A', 0.5, 'uM'), ('B', 5, 'nM')]", "0.5 uM + 5 nM"),
        ("", ""),
        (None, ""),
    ],
)
def test_doses_are_parsed(text, dose):
    assert dose_of(text) == dose


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "[('A', 'much', 'uM')]", "[(1, 2)]", "0.5", "[" * 5000, "[('A', 1, 2)]"]
)
def test_what_is_no_dose_is_told_and_never_run(text):
    with pytest.raises(UserError, match="drugname_drugconc"):
        dose_of(text)


def test_the_control_is_one_drug_exactly(source, tmp_path):
    folder = prepared(source, tmp_path / "s", heldout_by=(("drug", "DMSO_TF"),))
    heldout = ids_and_conditions(folder, "heldout")
    cells = published(source)
    assert heldout.keys() == set(cells.index[cells["drug"] == "DMSO_TF"])
    assert {conditions["dose"] for conditions in heldout.values()} == {"0 uM"}
    levels = folder.manifest.conditions["drug"]
    assert "Trametinib (DMSO_TF solvate)" in levels
    assert "DMSO_TF" not in levels, "levels are the training cells'"


def test_blanks_at_the_end_of_a_drug_are_dropped_unless_two_drugs_would_be_one(source, folder):
    assert (published(source)["drug"] == "Erdafitinib ").any()
    assert "Erdafitinib" in folder.manifest.conditions["drug"]
    assert not [level for level in folder.manifest.conditions["drug"] if level != level.strip()]
    assert stripped(["A ", "A", "B "]) == {}
    assert stripped(["A", "B"]) == {}


def test_cell_lines_have_their_names(source, folder):
    ids = published(source)["cell_line_id"]
    names = {"CVCL_0023": "A549", "CVCL_0480": "PANC-1", "CVCL_0546": "SW480"}
    found = ids_and_conditions(folder, "train")
    assert all(found[cell]["cell_line"] == names[cellosaurus] for cell, cellosaurus in ids.items())


def test_heldout_cells_of_every_kind_are_in_no_batch(source, tmp_path, monkeypatch):
    by = (("plate", "plate10"), ("dose", "0.5 uM"), ("cell_line", "A549"))
    folder = prepared(source, tmp_path / "s", heldout_fraction=0.2, heldout_by=by)
    train_cells, heldout = ids_and_conditions(folder, "train"), ids_and_conditions(folder, "heldout")
    assert len(train_cells) + len(heldout) == 720
    assert not train_cells.keys() & heldout.keys()
    for conditions in train_cells.values():
        assert conditions["plate"] != "plate10"
        assert conditions["dose"] != "0.5 uM"
        assert conditions["cell_line"] != "A549"
    levels = folder.manifest.conditions
    assert "plate10" not in levels["plate"]
    served = set()

    def read(self, ref, columns=None, *, real=ShardFolder.read, **options):
        group = real(self, ref, columns)
        served.update(group.cell_ids)
        return group

    monkeypatch.setattr(ShardFolder, "read", read)
    batches = first_batches(folder)
    assert served == train_cells.keys(), "an epoch and more reads each training cell, and nothing else"
    for batch in batches:
        assert batch["categoriesplate"].min() > 0, "no cell has a level that training does not know"


def test_a_share_of_cells_is_held_out_wherever_they_lie(tmp_path):
    one = small_tahoe(tmp_path / "a")
    other = small_tahoe(tmp_path / "b", rows_per_file=333, rows_per_group=50)
    kept = [
        ids_and_conditions(prepared(place, tmp_path / place.name / "s", heldout_fraction=0.25), "heldout").keys()
        for place in (one, other)
    ]
    assert kept[0] == kept[1]
    assert abs(len(kept[0]) - 180) < 4 * np.sqrt(720 * 0.25 * 0.75)


def test_only_the_cells_of_the_chosen_plates(source, tmp_path):
    folder = prepared(source, tmp_path / "s", plates=("plate10",), heldout_fraction=0.1)
    cells = ids_and_conditions(folder, "train") | ids_and_conditions(folder, "heldout")
    assert {conditions["plate"] for conditions in cells.values()} == {"plate10"}
    assert len(cells) == CELLS_OF_PLATE["plate10"]
    assert [shard.file for shard in folder.manifest.shards] == [f"data/train-0000{n}-of-00003.parquet" for n in (1,)]


def test_some_files_lie_at_even_distances(source, tmp_path):
    folder = prepared(source, tmp_path / "s", max_shards=1)
    assert [shard.file for shard in folder.manifest.shards] == ["data/train-00001-of-00003.parquet"]


def test_without_hashes_and_in_several_processes(source, folder, tmp_path):
    plain = prepared(source, tmp_path / "plain", hashes=False)
    assert not any(shard.hashes for shard in plain.manifest.shards)
    assert plain.manifest.conditions == folder.manifest.conditions
    assert (plain.statistics.mean_count == folder.statistics.mean_count).all()
    many, lines = prepare_tahoe(TahoeConfig(source=str(source), output_dir=tmp_path / "many", num_workers=2))
    assert many.digest == folder.digest
    assert not any("hash" in line for line in lines)


def test_a_flipped_bit_is_found(tmp_path):
    source = small_tahoe(tmp_path / "t")
    folder = prepared(source, tmp_path / "s")
    path = source / "data/train-00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00001-of-00003\.parquet, row group \d"):
        [folder.read(ref) for ref in folder.row_groups()]


def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch):
    source = small_tahoe(tmp_path / "t")
    whole = prepared(source, tmp_path / "whole", heldout_fraction=0.1)
    from mdsc.prep import tahoe

    scanned = []

    def scan(file, *others, real=tahoe.scan_file):
        scanned.append(file.name[:11])
        if len(scanned) == 3:
            raise KeyboardInterrupt
        return real(file, *others)

    monkeypatch.setattr(tahoe, "scan_file", scan)
    with pytest.raises(KeyboardInterrupt):
        prepared(source, tmp_path / "s", heldout_fraction=0.1)
    assert not (tmp_path / "s").exists()
    again = prepared(source, tmp_path / "s", heldout_fraction=0.1)
    assert scanned == ["train-00000", "train-00001", "train-00002", "train-00002"]
    assert again.digest == whole.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t", "whole"]


def test_what_was_found_of_another_file_or_for_other_options_is_not_taken(tmp_path, monkeypatch):
    source = small_tahoe(tmp_path / "t")
    from mdsc.prep import tahoe

    monkeypatch.setattr(tahoe, "sampled_statistics", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepared(source, tmp_path / "s", heldout_fraction=0.1)
    monkeypatch.undo()
    shutil.rmtree(source)
    small_tahoe(source, seed=5)
    assert prepared(source, tmp_path / "s").num_cells() == 720
    fresh = prepared(source, tmp_path / "fresh", heldout_fraction=0.1)
    assert prepared(source, tmp_path / "s", heldout_fraction=0.1).digest == fresh.digest


def change_first_file(source: Path, column: str, change) -> None:
    path = source / "data/train-00000-of-00003.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    new = change(table[column].combine_chunks())
    table = table.remove_column(place) if new is None else table.set_column(place, column, new)
    pq.write_table(table, path, row_group_size=100)


@pytest.mark.parametrize(
    ("column", "change", "told"),
    [
        ("genes", lambda _: None, r"no column genes"),
        ("BARCODE_SUB_LIB_ID", lambda _: None, r"no column BARCODE_SUB_LIB_ID"),
        ("sample", lambda _: None, r"no column sample"),
        ("drug", lambda c: pa.array(np.arange(len(c))), r"column drug is int64, not text"),
        ("genes", lambda c: c.cast(pa.list_(pa.string())), r"column genes is list<.*string>, not lists of integers"),
        ("genes", lambda c: pa.array([x[1:] for x in c.to_pylist()], c.type), r"column genes .*not with Tahoe's CLS"),
        (
            "expressions",
            lambda c: pa.array([[1, *x[1:]] for x in c.to_pylist()], c.type),
            r"column expressions .*row 0 begins with 1.*CLS",
        ),
        ("genes", lambda c: pa.array([[]] * len(c), c.type), r"column genes .*a row is empty"),
        (
            "expressions",
            lambda c: pa.array([[-2, *([0.5] * (len(x) - 1))] for x in c.to_pylist()], c.type),
            r"column expressions: not all values are positive integers",
        ),
        (
            "genes",
            lambda c: pa.array([[1, *([70000] * (len(x) - 1))] for x in c.to_pylist()], c.type),
            r"column genes: an id is not in genes",
        ),
    ],
)
def test_files_that_are_not_as_published_are_told(tmp_path, column, change, told):
    source = small_tahoe(tmp_path / "t")
    change_first_file(source, column, change)
    with pytest.raises(UserError, match=rf"train-00000-of-00003\.parquet: .*{told}"):
        prepared(source, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_file_that_was_cut_off_is_told(tmp_path):
    source = small_tahoe(tmp_path / "t")
    path = source / "data/train-00002-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train-00002-of-00003\.parquet: it does not end as a parquet file does; copy"):
        prepared(source, tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"condition_columns": ("drugs",)}, "--condition-columns: Tahoe has no drugs; it has drug, plate"),
        ({"heldout_fraction": 1.0}, r"--heldout-fraction 1\.0"),
        ({"heldout_by": (("drug",),)}, "--heldout-by drug: give one or more values"),
        ({"heldout_by": ((),)}, "--heldout-by: give a column and one or more values"),
        ({"metadata": Path("nowhere")}, "--metadata nowhere is no folder"),
        ({"metadata": Path(__file__).parent}, "--metadata .* has no tables"),
        ({"heldout_by": (("donor", "A"),)}, "--heldout-by donor: cells can be held out by plate, drug"),
        ({"heldout_by": (("drug", "Erdafitinob"),)}, "no drug 'Erdafitinob'; near: Erdafitinib"),
        ({"heldout_by": (("dose", "0.05"),)}, "no dose '0.05'; near: 0.05 uM"),
        ({"plates": ("plate7",)}, "--plates plate7: no file has cells of it; there are plate1, plate10, plate2"),
        ({"max_shards": 0}, "--max-shards 0: give 1 or more"),
        ({"heldout_by": (("plate", "plate1", "plate2", "plate10"),)}, "no cell is left to train on"),
        ({"metadata": Path("nowhere"), "source": "empty"}, "no expression files"),
        ({"stream": True}, "--stream has no meaning for .* a folder here: leave it out"),
        ({"download_dir": Path("x")}, "--download-dir has no meaning"),
        ({"source": "no/such/folder"}, "no such folder"),
        ({"source": "file:///no/such"}, "no expression files"),
    ],
)
def test_mistakes_are_told(source, tmp_path, options, told):
    (tmp_path / "empty").mkdir()
    place = str(source) if "source" not in options else options.pop("source").replace("empty", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=told):
        prepared(place, tmp_path / "s", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("by", [("plate", "plate3", "plate1"), ("dose", "7 uM"), ("cell_line", "PC-3", "A549")])
def test_a_value_that_holds_out_no_cell_is_told(tmp_path, by):
    source = small_tahoe(tmp_path / "t")
    tables = SideTables.made_up()
    tables.sample.loc[len(tables.sample)] = ["smp_9", "plate3", "DMSO_TF", "[('DMSO_TF', 7.0, 'uM')]"]
    tables.cell_line.loc[len(tables.cell_line)] = ["PC-3", "CVCL_9"]
    tables.save(source / "metadata")
    config = TahoeConfig(
        source=str(source), output_dir=tmp_path / "s", num_workers=1, heldout_by=(by,), condition_columns=()
    )
    told = f"no cell of the files that were read has {by[0]} {by[1]} (--heldout-by)"
    with pytest.raises(UserError) as error:
        prepare_tahoe(config)
    assert told in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    folder, lines = prepare_tahoe(replace(config, max_shards=2))
    assert f"note: {told}: nothing is held out by that" in lines
    assert ("heldout" in folder.splits) == (len(by) > 2)


def test_side_tables_may_lie_elsewhere_and_are_missed(tmp_path):
    source = small_tahoe(tmp_path / "t")
    shutil.move(source / "metadata", tmp_path / "tables")
    with pytest.raises(UserError, match=r"there is no gene_metadata\.parquet in .*--metadata"):
        prepared(source, tmp_path / "s")
    assert prepared(source, tmp_path / "s", metadata=tmp_path / "tables").num_cells() == 720
    (tmp_path / "tables/sample_metadata.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"sample_metadata\.parquet cannot be read"):
        prepared(source, tmp_path / "s", metadata=tmp_path / "tables")
    assert prepared(source, tmp_path / "s", metadata=tmp_path / "tables", condition_columns=()).num_cells() == 720


def test_the_source_is_never_replaced_by_the_output(tmp_path):
    source = small_tahoe(tmp_path / "t")
    folder = prepared(source, tmp_path / "s")
    shutil.move(source, folder.path / "t")
    with pytest.raises(UserError, match=r"t lies in --output-dir .*s, which is replaced"):
        prepared(folder.path / "t", folder.path)
    with pytest.raises(UserError, match="holds other files"):
        prepared(folder.path / "t", folder.path / "t")


def test_symbols_that_repeat_are_told_apart(tmp_path):
    tables = SideTables.made_up(num_genes=5)
    tables.gene["gene_symbol"] = ["A", "B", "A", "C", "A"]
    tables.save(tmp_path)
    vocabulary, repeated = ReadTables((str(tmp_path),)).vocabulary()
    names = (f"A_{tables.gene['ensembl_id'][0]}", "B", f"A_{tables.gene['ensembl_id'][2]}", "C")
    assert vocabulary.symbols[:4] == names
    assert repeated == 1


def test_train_runs_on_it_with_its_conditions(source, tmp_path):
    prepared(source, tmp_path / "s", heldout_fraction=0.1)
    flags = "--model.hidden-size 16 --model.num-layers 1 --model.num-heads 2 --model.state-size 4 --model.factor-size 4"
    run = "--train.max-steps 3 --train.pathway-steps 0 --train.global-batch-size 16 --data.num-lanes 4"
    conditions = ["--data.condition-columns", "drug", "cell_line", "dose"]
    train([*f"--data.dir {tmp_path}/s --output-dir {tmp_path}/run {flags} {run}".split(), *conditions])
    assert (tmp_path / "run/model.safetensors").is_file()
    assert '"DMSO_TF"' in (tmp_path / "run/config.json").read_text()


def test_the_published_tables_are_read(tmp_path):
    metadata = shared_file("tahoe100m_metadata")
    tables = ReadTables((str(metadata),))
    vocabulary, repeated = tables.vocabulary()
    assert (len(vocabulary), repeated, vocabulary.token_ids[0], vocabulary.token_ids[-1]) == (62_710, 0, 3, 62_712)
    assert sorted(set(tables.doses().values())) == ["0 uM", "0.05 uM", "0.5 uM", "5 uM"]
    assert tables.cell_lines()["CVCL_0023"] == "A549"
    drugs = tables.read("sample_metadata", ("drug",))["drug"]
    assert len(set(drugs)) == len({name.strip() for name in drugs}) == 380
    assert len(stripped(sorted(set(drugs)))) == 380
    source = write_tahoe(tmp_path / "t", {"plate1": 120, "plate12": 80}, SideTables.load(metadata), genes_per_cell=200)
    folder = prepared(source, tmp_path / "s", heldout_by=(("drug", "DMSO_TF"), ("plate", "plate12")))
    assert folder.num_cells("heldout") > 80
    assert pq.read_schema(next((source / "data").iterdir())).equals(SCHEMA)
