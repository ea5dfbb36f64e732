"""AnnData files to shards."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from shared_data import shared_file

from mdsc.atomic import alone, replacing
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.demo import counts_of_logs, embedded_cells
from mdsc.prep.demo import main as demo_main
from mdsc.prep.file_work import going_on
from mdsc.prep.h5ad import H5adConfig, main, prepare_h5ad


def make(path, genes, num_cells=30, seed=0, **columns):
    rng = np.random.default_rng(seed)
    obs = {"drug": rng.choice(["a", "b"], num_cells), "split": rng.choice(["train", "test"], num_cells)} | columns
    obs = pd.DataFrame(obs, index=[f"c{i}" for i in range(num_cells)])
    X = sp.csr_matrix(rng.poisson(1.0, (num_cells, len(genes))).astype(np.float32))
    adata = anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=genes))
    adata.write_h5ad(path)
    return adata


def test_one_file(tmp_path, capsys):
    adata = make(tmp_path / "cells.h5ad", ["A", "B", "C"], dose=[0.5, np.nan] * 15)
    out = tmp_path / "shards"
    args = [str(tmp_path / "cells.h5ad"), "--output-dir", str(out), "--condition-columns", "drug", "dose"]
    main([*args, "--split-column", "split"])
    printed = capsys.readouterr()
    assert "train" in printed.out
    assert printed.err == ""
    folder = ShardFolder.open(out)
    for split in ("train", "test"):
        expected, got = adata[adata.obs["split"] == split], folder.to_anndata(split)
        assert (got.X != expected.X).nnz == 0
        assert got.obs_names.tolist() == expected.obs_names.tolist()
        assert got.obs["drug"].tolist() == expected.obs["drug"].tolist()
        assert got.obs["dose"].tolist() == [
            "0.5" if name[1:] in map(str, range(0, 30, 2)) else "" for name in got.obs_names
        ]
    assert json.loads((out / "manifest.json").read_text())["sources"] == [{"file": "cells.h5ad", "cells": 30}]


def test_several_files_are_joined_by_gene(tmp_path):
    first = make(tmp_path / "a.h5ad", ["A", "B", "C"], 5, seed=1)
    second = make(tmp_path / "b.h5ad", ["C", "D", "A"], 4, seed=2)
    folder = prepare_h5ad(H5adConfig(inputs=(tmp_path / "a.h5ad", tmp_path / "b.h5ad"), output_dir=tmp_path / "s"))
    joined = folder.to_anndata()
    assert joined.var_names.tolist() == ["A", "B", "C", "D"]
    assert joined.obs_names.tolist()[4:6] == ["a:c4", "b:c0"]
    assert (joined[:5, ["A", "B", "C"]].X != first.X).nnz == 0
    assert (joined[5:, ["C", "D", "A"]].X != second.X).nnz == 0
    assert joined[:5, "D"].X.nnz == joined[5:, "B"].X.nnz == 0


def test_flags_that_are_given_twice_add_up(tmp_path):
    make(tmp_path / "a.h5ad", ["A", "B"], line=["x", "y", "z"] * 10)
    flags = "--condition-columns drug --condition-columns line drug --heldout-by drug a --heldout-by line z"
    main([str(tmp_path / "a.h5ad"), "--output-dir", str(tmp_path / "s"), *flags.split()])
    folder = ShardFolder.open(tmp_path / "s")
    assert folder.manifest.conditions == {"drug": ("b",), "line": ("x", "y")}


def test_files_that_are_called_alike_have_cells_of_other_names(tmp_path, capsys):
    for place, genes in (("p1", ["A", "B"]), ("p2", ["B", "C"])):
        (tmp_path / place).mkdir()
        make(tmp_path / place / "cells.h5ad", genes, 20, donor=[None, "d"] * 10, number=[str(n) for n in range(20)])
    first, second = (tmp_path / place / "cells.h5ad" for place in ("p1", "p2"))
    out = ["--output-dir", str(tmp_path / "s")]
    main([str(first), str(second), *out, "--condition-columns", "donor", "number", "drug"])
    told = capsys.readouterr().out
    names = ShardFolder.open(tmp_path / "s").to_anndata().obs_names
    assert names[[0, 20]].tolist() == ["p1/cells:c0", "p2/cells:c0"]
    assert "cells are called FILE:NAME (p1/cells:..., p2/cells:...)" in told
    assert "genes that a file lacks are zeros of its cells, at most 1 of 3 (in " in told
    assert "note: 20 of 40 cells have no value of donor: it is unknown" in told
    assert "warning" not in told
    main([str(first), *out, "--condition-columns", "number", "drug"])
    assert "warning: number has 20 values for 20 cells" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"cells\.h5ad is given twice"):
        main([str(first), str(tmp_path / "p2/../p1/cells.h5ad"), *out])
    with pytest.raises(UserError, match="--cells-per-shard is 0"):
        main([str(first), *out, "--cells-per-shard", "0"])
    adata = anndata.read_h5ad(first)
    adata.obs_names = ["c0", *adata.obs_names[:-1]]
    adata.write_h5ad(first)
    main([str(first), *out])
    assert "cells.h5ad: 1 cells have a name that another cell" in capsys.readouterr().out


def test_what_is_kept_for_another_try_is_told(tmp_path):
    (tmp_path / ".s.parts").mkdir()
    with pytest.raises(UserError, match=r"^wrong\nWhat is done .* waits in .*/\.s\.parts"), going_on(tmp_path / "s"):
        raise UserError("wrong")
    with pytest.raises(UserError, match=r"^wrong$"), going_on(tmp_path / "other"):
        raise UserError("wrong")
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"), going_on(tmp_path):
        raise KeyboardInterrupt


def test_one_command_at_a_time_writes_a_folder(tmp_path, monkeypatch):
    make(tmp_path / "a.h5ad", ["A", "B"])
    config = H5adConfig(inputs=(tmp_path / "a.h5ad",), output_dir=tmp_path / "s")
    with alone(tmp_path / "s"), pytest.raises(UserError, match="s is being written by another command: wait"):
        prepare_h5ad(config)
    prepare_h5ad(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "s"]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"'{tmp_path}/x.h5ad'"), replacing(tmp_path / "x.h5ad"):
        pass


def test_wrong_input_is_told_and_nothing_is_written(tmp_path):
    make(tmp_path / "a.h5ad", ["A", "B"])
    make(tmp_path / "b.h5ad", ["ENSG00000198851", "ENSG00000156738"])
    make(tmp_path / "unsplit.h5ad", ["A", "B"], split=["train", None] * 15)
    make(tmp_path / "test.h5ad", ["A", "B"], split="test")
    before = sorted(tmp_path.iterdir())

    def told(*names, **options):
        inputs = tuple(tmp_path / name for name in names)
        with pytest.raises(UserError) as error:
            prepare_h5ad(H5adConfig(inputs=inputs, output_dir=tmp_path / "s", **options))
        assert sorted(tmp_path.iterdir()) == before
        return str(error.value)

    assert "no column 'dose' in obs (--condition-columns): it has drug, split" in told(
        "a.h5ad", condition_columns=("drug", "dose")
    )
    assert "no column 'fold' in obs (--split-column)" in told("a.h5ad", split_column="fold")
    assert "b.h5ad has no gene in common with" in told("a.h5ad", "b.h5ad")
    assert "has no value for some cells" in told("unsplit.h5ad", split_column="split")
    assert "no cell is of split 'train'" in told("test.h5ad", split_column="split")
    assert "no layer 'counts'" in told("a.h5ad", layer="counts")
    assert "there is no file" in told("a.h5ad", "none.h5ad")
    assert "no h5ad file is given" in told()
    with pytest.raises(UserError, match="holds other files"):
        prepare_h5ad(H5adConfig(inputs=(tmp_path / "a.h5ad",), output_dir=tmp_path))


def test_what_else_a_folder_of_shards_holds_is_never_lost(tmp_path):
    make(tmp_path / "a.h5ad", ["A", "B"])
    out = tmp_path / "s"
    config = H5adConfig(inputs=(tmp_path / "a.h5ad",), output_dir=out)
    prepare_h5ad(config)
    (out / "cache").mkdir()
    (out / "cache/total").write_text("0")
    prepare_h5ad(replace(config, cells_per_shard=10))
    assert sorted(path.name for path in out.iterdir()) == [
        "genes.parquet", "manifest.json", *(f"train-0000{number}.parquet" for number in range(3))
    ]  # fmt: skip
    prepare_h5ad(config)  # the shards of before are gone
    (out / "run").mkdir()
    (out / "run/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no part of it: run/notes\.txt\.\nMove them"):
        prepare_h5ad(config)
    (tmp_path / "a.h5ad").rename(out / "a.h5ad")
    with pytest.raises(UserError, match=r"s/a\.h5ad lies in --output-dir"):
        prepare_h5ad(replace(config, inputs=(out / "a.h5ad",)))
    assert (out / "run/notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"a\.h5ad is a file; .*/a\.h5ad/x cannot be below it"):
        prepare_h5ad(replace(config, output_dir=out / "a.h5ad/x"))


@pytest.mark.parametrize(
    ("file", "conditions"),
    [
        pytest.param("adamson2016_pilot.h5ad", ("guide_gene",), id="adamson-csc"),
        pytest.param("kang2018_donors.h5ad", ("sample_id", "cluster_id"), id="kang-ensembl-ids"),
    ],
)
def test_real_files(tmp_path, file, conditions):
    path = shared_file(file)
    folder = prepare_h5ad(H5adConfig(inputs=(path,), output_dir=tmp_path / "s", condition_columns=conditions))
    expected, got = anndata.read_h5ad(path), folder.to_anndata()
    assert abs(got.X - expected.X.tocsr()).max() == 0
    assert got.obs[conditions[0]].tolist() == expected.obs[conditions[0]].astype(str).tolist()
    assert folder.vocabulary.ensembl_ids[0].startswith("ENSG")
    assert got.var_names.tolist() == expected.var_names.tolist()


def test_counts_are_recovered_from_rounded_logarithms():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.negative_binomial(0.5, 0.2, (50, 200)).astype(np.int32))
    factor = sp.diags(rng.uniform(2, 20, 50))
    logs = (factor @ counts).tocsr().log1p()
    logs.data = logs.data.round(3)
    assert (counts_of_logs(logs) != counts).nnz == 0
    with pytest.raises(AssertionError, match="no logarithms"):
        counts_of_logs(sp.csr_matrix(rng.random((5, 20)) + 0.1))


def test_the_embedded_cells(tmp_path, capfd):
    demo_main(["--output-dir", str(tmp_path / "demo")])
    printed = capfd.readouterr()
    assert 2 <= printed.out.count("\n") <= 4
    assert printed.err == ""
    cells = anndata.read_h5ad(tmp_path / "demo/pbmc700.h5ad")
    assert cells.shape == (700, 765)
    assert cells.X.dtype == np.int32
    assert cells.obs["split"].value_counts().to_dict() == {"train": 580, "heldout": 120}
    assert (np.diff(cells.X.indptr) > 0).all()
    assert cells.X.data.min() == 1
    assert cells.X.max() == 259
    folder = ShardFolder.open(tmp_path / "demo/shards")
    assert (folder.num_cells("train"), folder.num_cells("heldout")) == (580, 120)
    assert folder.condition_columns == ("bulk_labels",)
    assert (embedded_cells().X != cells.X).nnz == 0
    args = ["--output-dir", str(tmp_path / "s"), "--condition-columns", "bulk_labels", "--split-column", "split"]
    main([str(tmp_path / "demo/pbmc700.h5ad"), *args])
    assert ShardFolder.open(tmp_path / "s").digest == folder.digest
