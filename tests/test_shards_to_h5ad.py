"""Cells out of shards: exactly those that went in, or those that were asked for."""

import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mdsc.cli import main as mdsc
from mdsc.data.cell_subset import choose_cells, read_chosen
from mdsc.data.h5ad_writer import H5adWriter
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.h5ad import H5adConfig, prepare_h5ad
from mdsc.prep.shards_to_h5ad import ShardsToH5adConfig, main, shards_to_h5ad

NUM_CELLS = 3500


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    obs = {
        "drug": rng.choice(["DMSO_TF", "a", "b", None], NUM_CELLS, p=[0.5, 0.2, 0.2, 0.1]),
        "cell_line": rng.choice(["A549", "MCF7"], NUM_CELLS),
        "split": np.where(rng.random(NUM_CELLS) < 0.3, "test", "train").astype(object),
    }
    X = rng.poisson(0.5, (NUM_CELLS, 12)).astype(np.int32)
    X[7] = 0  # a cell without counts
    ids = [f"ENSG{gene:011d}" for gene in range(12)]
    var = pd.DataFrame({"gene_ids": ids}, index=[f"G{gene}" for gene in range(12)])
    return anndata.AnnData(sp.csr_matrix(X), obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(NUM_CELLS)]), var=var)


@pytest.fixture(scope="module")
def shards(cells, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    cells.write_h5ad(folder / "cells.h5ad")
    config = H5adConfig(
        inputs=(folder / "cells.h5ad",),
        output_dir=folder / "shards",
        condition_columns=("drug", "cell_line"),
        split_column="split",
        cells_per_shard=1200,
    )
    return prepare_h5ad(config).path


def taken(shards: Path, output: Path, **options) -> anndata.AnnData:
    number = shards_to_h5ad(ShardsToH5adConfig(input=shards, output=output, **options))
    adata = anndata.read_h5ad(output)
    assert len(adata) == number
    return adata


def test_there_and_back_is_exact(cells, shards, tmp_path):
    got = taken(shards, tmp_path / "back.h5ad")
    assert (got.X.dtype, got.X.format, got.X.has_sorted_indices) == (np.int32, "csr", True)
    assert sorted(got.obs_names) == sorted(cells.obs_names)
    expected = cells[got.obs_names]
    assert (got.X != expected.X).nnz == 0
    assert got.var_names.tolist() == expected.var_names.tolist()
    assert got.var["ensembl_id"].tolist() == expected.var["gene_ids"].tolist()
    for name in ("drug", "cell_line", "split"):
        assert isinstance(got.obs[name].dtype, pd.CategoricalDtype)
        assert list(got.obs[name].cat.categories) == sorted(expected.obs[name].dropna().unique())
        assert (
            got.obs[name].astype(object).fillna("?").tolist() == expected.obs[name].astype(object).fillna("?").tolist()
        )
    note = got.uns["mdsc_shards"]
    assert note["digest"] == ShardFolder.open(shards).digest
    assert (note["source"], note["cells_chosen"]) == ("shards", "all")

    # And again: what comes out is as good as what went in.
    config = H5adConfig(
        inputs=(tmp_path / "back.h5ad",),
        output_dir=tmp_path / "s",
        condition_columns=("drug", "cell_line"),
        split_column="split",
        cells_per_shard=1200,
    )
    again = prepare_h5ad(config).path
    assert ShardFolder.open(again).vocabulary.digest == ShardFolder.open(shards).vocabulary.digest
    for path in shards.glob("t*.parquet"):
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_cells_are_chosen_by_split_and_conditions(cells, shards, tmp_path, capsys):
    out = tmp_path / "some.h5ad"
    args = ["--split", "train", "--where", "drug=DMSO_TF", "drug=a", "cell_line=A549"]
    assert mdsc(["shards-to-h5ad", str(shards), "--output", str(out), *args]) == 0
    printed = capsys.readouterr()
    obs = cells.obs
    is_chosen = (obs["split"] == "train") & obs["drug"].isin(["DMSO_TF", "a"]) & (obs["cell_line"] == "A549")
    assert anndata.read_h5ad(out).obs_names.tolist() == obs.index[is_chosen].tolist()
    assert printed.out == f"{out}: {is_chosen.sum():,} cells of {shards}\n"
    assert printed.err == ""
    unknown = taken(shards, out, where=("drug=",))
    assert len(unknown) == obs["drug"].isna().sum()
    assert unknown.obs["drug"].isna().all()


def test_a_random_choice_is_keyed_and_spread(cells, shards, tmp_path):
    folder, out = ShardFolder.open(shards), tmp_path / "some.h5ad"
    first, again = taken(shards, out, max_cells=101), taken(shards, out, max_cells=101)
    other = taken(shards, out, max_cells=101, seed=1)
    assert len(first) == 101
    assert first.obs_names.tolist() == again.obs_names.tolist() != other.obs_names.tolist()
    assert (first.X != cells[first.obs_names].X).nnz == 0
    for found in choose_cells(folder, max_cells=101):
        assert abs(len(found.rows) - 101 * found.ref.rows / NUM_CELLS) < 1
    # Every cell is as likely as any other.
    times = dict.fromkeys(cells.obs_names, 0)
    for seed in range(60):
        for found in choose_cells(folder, where={"drug": ["DMSO_TF", "a", "b", ""]}, max_cells=700, seed=seed):
            for name in read_chosen(folder, found).cell_ids:
                times[name] += 1
    times = np.array(list(times.values()))
    assert times.sum() == 60 * 700
    assert abs(times[::2].mean() - 12) < 5 * np.sqrt(12 * 0.8 / (NUM_CELLS / 2))
    assert times.max() < 30
    assert times.min() < 8


@pytest.mark.parametrize("max_cells", [1, 840, 1000, NUM_CELLS, 10**9])
def test_the_first_cells(shards, tmp_path, max_cells):
    whole = taken(shards, tmp_path / "whole.h5ad").obs_names
    first = taken(shards, tmp_path / "first.h5ad", max_cells=max_cells, first=True).obs_names
    assert first.tolist() == whole[:max_cells].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"where": ("dose=1",)}, r"no condition column 'dose' \(--where\): it has 'drug', 'cell_line'"),
        ({"where": ("drug=c",)}, r"no cell has drug=c \(--where\): drug is '', 'DMSO_TF', 'a', 'b'"),
        ({"where": ("drug",)}, "write it as COLUMN=VALUE"),
        ({"split": "heldout"}, "no cells of split 'heldout': it has"),
        ({"output": Path("x.txt")}, r"--output x\.txt: give a name that ends with \.h5ad"),
        ({"max_cells": 0}, "--max-cells is 0"),
        ({"output": Path()}, r"is a folder \(--output\)"),
        ({"input": Path("nowhere")}, "there is no folder nowhere"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(shards, tmp_path, options, words):
    given = {"input": shards, "output": tmp_path / "x.h5ad"} | options
    with pytest.raises(UserError, match=words) as error:
        shards_to_h5ad(ShardsToH5adConfig(**given))
    assert len(str(error.value).splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_a_choice_without_cells_is_told(tmp_path):
    obs = pd.DataFrame({"drug": ["a", "b"], "line": ["x", "y"]}, index=["c0", "c1"])
    cells = anndata.AnnData(sp.csr_matrix(np.ones((2, 2), dtype=np.int32)), obs=obs)
    cells.write_h5ad(tmp_path / "two.h5ad")
    config = H5adConfig(inputs=(tmp_path / "two.h5ad",), output_dir=tmp_path / "s", condition_columns=("drug", "line"))
    prepare_h5ad(config)
    with pytest.raises(UserError, match="no cell that has all of this together"):
        main([str(tmp_path / "s"), "--output", str(tmp_path / "x.h5ad"), "--where", "drug=a", "line=y"])


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.h5ad"
    path.write_text("before")
    wrong = sp.csr_matrix(np.ones((1, 2), dtype=np.int32))
    with pytest.raises(AssertionError, match=r"\(1, 2\)"), H5adWriter(path, ("drug",), {}, ["A"]) as writer:
        writer.write(wrong, {"drug": ["a"]}, ["c0"])
    assert [found.name for found in tmp_path.iterdir()] == ["x.h5ad"]
    assert path.read_text() == "before"


def test_the_command_needs_no_torch():
    code = "import sys, mdsc.prep.shards_to_h5ad, mdsc.prep.h5ad; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
