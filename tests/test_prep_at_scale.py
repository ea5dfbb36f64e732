"""Many files: any number of processes, interruptions, held-out cells, a given vocabulary; shards are the same bytes."""

import dataclasses
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mdsc.data.anndata_counts import open_counts
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep import file_parts
from mdsc.prep.h5ad import H5adConfig, main, parts_folder, prepare_h5ad

NUM_CELLS = (1500, 700, 900)


def make(path: Path, genes: list[str], num_cells: int, seed: int, ids: list[str] | None = None) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    obs = {"drug": rng.choice(["a", "b"], num_cells), "donor": f"d{seed}", "note": "long"}
    obs = pd.DataFrame(obs, index=[f"c{seed}-{i}" for i in range(num_cells)])
    X = sp.csr_matrix(rng.poisson(1.0, (num_cells, len(genes))).astype(np.float32))
    var = pd.DataFrame({} if ids is None else {"gene_ids": ids}, index=genes)
    adata = anndata.AnnData(X, obs=obs, var=var)
    adata.write_h5ad(path)
    return adata


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("files")
    paths = tuple(folder / f"f{number}.h5ad" for number in range(3))
    genes = [list("ABCDE"), list("CDEF"), list("AEGH")]
    for number, path in enumerate(paths):
        make(path, genes[number], NUM_CELLS[number], number)
    return paths


def config(files: tuple[Path, ...], output: Path, **options) -> H5adConfig:
    given = {"condition_columns": ("drug",), "heldout_fraction": 0.25} | options
    return H5adConfig(inputs=files, output_dir=output, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory) -> dict[str, bytes]:
    return contents(prepare_h5ad(config(files, tmp_path_factory.mktemp("whole") / "s")).path)


def test_several_processes_write_the_same_bytes(files, expected, tmp_path):
    folder = prepare_h5ad(config(files, tmp_path / "s", num_workers=2))
    assert contents(folder.path) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    groups = [shard.row_groups for shard in folder.manifest.shards if shard.split == "train"]
    assert set(groups[0][:-1]) == {1000}, "row groups are full, wherever files end"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_interrupted_preparation_goes_on_from_the_files_that_are_done(
    files, expected, tmp_path, monkeypatch, num_workers
):
    read, write_part = [], file_parts.write_part

    def interrupted(part):
        if part.source == files[1]:
            raise KeyboardInterrupt
        yield from write_part(part)

    def counted(part):
        read.append(part.source)
        yield from write_part(part)

    monkeypatch.setattr(file_parts, "write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_h5ad(config(files, tmp_path / "s"))
    parts = parts_folder(tmp_path / "s")
    assert list(tmp_path.iterdir()) == [parts]
    assert [path.suffix for path in parts.iterdir()] == [".arrow"]
    monkeypatch.setattr(file_parts, "write_part", counted)
    folder = prepare_h5ad(config(files, tmp_path / "s", num_workers=num_workers))
    assert contents(folder.path) == expected
    assert read == (list(files[1:]) if num_workers == 1 else [])  # other processes have their own functions
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_other_settings_and_changed_files_start_anew(files, tmp_path, monkeypatch):
    def name(**options) -> str:
        parts = []
        monkeypatch.setattr(file_parts, "write_part", lambda part: parts.append(part) or iter(()))
        with pytest.raises(UserError, match="cannot be read"):
            prepare_h5ad(config((paths[0],), tmp_path / "s", **options))
        return parts[0].path.name

    paths = [tmp_path / "a.h5ad"]
    adata = make(paths[0], list("AB"), 20, 0)
    names = [name(), name(heldout_fraction=0.3), name(condition_columns=("donor",))]
    assert name() == names[0]
    adata[:19].write_h5ad(paths[0])
    assert len({*names, name()}) == 4


def test_a_fault_in_a_later_file_leaves_what_was_there_and_what_is_done(files, tmp_path):
    before = contents(prepare_h5ad(config(files[:1], tmp_path / "s")).path)
    bad = tmp_path / "bad.h5ad"
    make(bad, list("ABC"), 1200, 9)
    with h5py.File(bad, "r+") as file:
        assert len(file["X/data"]) < 1_000_000
        file["X/data"][-1] = 0.5
    for workers in (2, 1):
        with pytest.raises(UserError, match=r"bad.h5ad: X holds values that are no integers"):
            prepare_h5ad(config((files[0], bad), tmp_path / "s", num_workers=workers))
        assert contents(tmp_path / "s") == before


def test_a_damaged_file_and_a_damaged_part_are_named(files, tmp_path, monkeypatch):
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(files[0].read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut.h5ad is no h5ad file, or damaged"):
        prepare_h5ad(config((files[1], cut), tmp_path / "s", num_workers=2))
    assert list(tmp_path.iterdir()) == [cut]

    def broken(part):
        part.path.write_bytes(b"no part")
        yield 0

    with monkeypatch.context() as patch:
        patch.setattr(file_parts, "write_part", broken)
        with pytest.raises(UserError, match=r"Give the same command again: it reads .*f0.h5ad anew"):
            prepare_h5ad(config(files[:1], tmp_path / "s"))
    assert prepare_h5ad(config(files[:1], tmp_path / "s")).num_cells("train") > 1000


def test_held_out_cells_stay_when_files_are_added(files, tmp_path):
    alone = prepare_h5ad(config(files[:1], tmp_path / "one")).to_anndata("heldout")
    joined = prepare_h5ad(config((files[1], files[0]), tmp_path / "two")).to_anndata("heldout")
    assert [name for name in joined.obs_names if name.startswith("f0:")] == [f"f0:{name}" for name in alone.obs_names]
    assert 0.2 < len(alone) / NUM_CELLS[0] < 0.3


def test_a_donor_is_held_out(files, tmp_path):
    folder = prepare_h5ad(config(files, tmp_path / "s", heldout_fraction=None, heldout_by=(("donor", "d1"),)))
    assert folder.num_cells("heldout") == NUM_CELLS[1]
    assert all(name.startswith("f1:") for name in folder.to_anndata("heldout").obs_names)


def test_counts_of_columns_for_one_gene_are_added_up(tmp_path, capsys):
    with pytest.warns(UserWarning, match="not unique"):
        adata = make(tmp_path / "a.h5ad", ["A", "B", "A", "C"], 50, 0, ["ENSG00000000001", "", "", "ENSG00000000002"])
    with pytest.raises(UserError, match="--duplicate-genes sum"):
        prepare_h5ad(config((tmp_path / "a.h5ad",), tmp_path / "s"))
    args = [str(tmp_path / "a.h5ad"), "--output-dir", str(tmp_path / "s"), "--duplicate-genes", "sum"]
    main(args)
    assert "1 genes have several columns, whose counts are added up" in capsys.readouterr().out
    got, dense = ShardFolder.open(tmp_path / "s").to_anndata(), adata.X.toarray()
    assert got.var_names.tolist() == ["A", "B", "C"]
    assert (got.X.toarray() == np.stack([dense[:, 0] + dense[:, 2], dense[:, 1], dense[:, 3]], axis=1)).all()


def test_a_given_vocabulary_is_kept(files, tmp_path, capsys):
    first = prepare_h5ad(config(files[:1], tmp_path / "first"))
    for path in (first.path, first.path / "genes.parquet"):
        args = [str(files[1]), "--output-dir", str(tmp_path / "s"), "--vocabulary", str(path)]
        main(args)
        printed = capsys.readouterr().out
        assert "f1.h5ad: 1 of 4 genes are not in the vocabulary and left out: F" in printed
        assert "vocabulary: 3 of 5 genes are measured; 2 are in no file" in printed
        folder = ShardFolder.open(tmp_path / "s")
        assert folder.vocabulary.digest == first.vocabulary.digest
        expected, got = anndata.read_h5ad(files[1]), folder.to_anndata()
        assert (got[:, list("CDE")].X != expected[:, list("CDE")].X).nnz == 0
        assert got[:, list("AB")].X.nnz == 0
    with pytest.raises(UserError, match="--vocabulary"):
        prepare_h5ad(dataclasses.replace(config(files, tmp_path / "s"), vocabulary=tmp_path / "none"))


def test_columns_that_nobody_needs_are_not_read(files, monkeypatch):
    read, get = [], h5py.Group.__getitem__
    monkeypatch.setattr(h5py.Group, "__getitem__", lambda group, name: read.append(name) or get(group, name))
    with open_counts(files[0], obs_columns=("drug", "none")) as source:
        assert list(source.obs) == ["drug"]
        assert source.obs_columns == ("drug", "donor", "note")
    assert "drug" in read
    assert not {"donor", "note"} & set(read)


def test_too_few_processes_are_told(files, tmp_path):
    with pytest.raises(UserError, match="--num-workers is 0"):
        prepare_h5ad(config(files, tmp_path / "s", num_workers=0))
