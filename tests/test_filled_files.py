"""What `sample.py` adds beside a draw and the means: more draws, spread, quantiles; and what becomes of the input."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from test_sample_command import GENES, cells, dense, layers, same_bits, sample
from tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint

from mdsc import inpaint_anndata
from mdsc.cli import main

RATIO = ("--mask-ratio", "0.8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("runs") / "a", GENES)


def test_draws_spread_and_quantiles(checkpoint: Path, tmp_path: Path):
    adata = cells()
    one = sample(checkpoint, tmp_path, adata, name="one")
    many = sample(checkpoint, tmp_path, adata, *RATIO, "--num-draws", "3", name="many")
    names = [*("sampled", "sampled_1", "sampled_2", "mean", "sd", "q5", "q50", "q95"), "hidden"]
    assert list(many.layers) == sorted(f"mdsc_{name}" for name in names)
    hidden, counts = dense(many.layers["mdsc_hidden"]), dense(adata.X)
    for name in ("mdsc_sampled", "mdsc_mean", "mdsc_hidden"):
        assert same_bits(one.layers[name], many.layers[name]), name
    for name in names[:-1]:
        layer = dense(many.layers[f"mdsc_{name}"])
        assert np.array_equal(layer[~hidden], np.zeros((~hidden).sum()) if name == "sd" else counts[~hidden]), name
    low, middle, high = (dense(many.layers[f"mdsc_q{percent}"]) for percent in (5, 50, 95))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (low < high).any()
    assert many.layers["mdsc_q5"].dtype == np.int32
    assert many.layers["mdsc_sd"].dtype == np.float32
    assert (dense(many.layers["mdsc_sampled_1"]) != dense(many.layers["mdsc_sampled_2"])).any()
    assert many.uns["mdsc"]["num_draws"] == 3
    assert many.uns["mdsc"]["quantiles"].tolist() == [0.05, 0.5, 0.95]


def test_no_draws_and_quantiles_of_choice(checkpoint: Path, tmp_path: Path):
    found = sample(checkpoint, tmp_path, cells(), *RATIO, "--num-draws", "0", "--quantiles", "0.975", "0.1")
    assert list(found.layers) == ["mdsc_hidden", "mdsc_mean", "mdsc_q10", "mdsc_q97.5", "mdsc_sd"]
    whole = sample(checkpoint, tmp_path, cells(), name="whole")
    assert same_bits(found.layers["mdsc_mean"], whole.layers["mdsc_mean"])
    assert (dense(found.layers["mdsc_q10"]) <= dense(found.layers["mdsc_q97.5"])).all()


def test_small_means_are_left_out_and_told(checkpoint: Path, tmp_path: Path, capsys):
    whole = sample(checkpoint, tmp_path, cells(), *RATIO, "--mean-floor", "0", "--quantiles", "0.5", name="whole")
    assert all(isinstance(whole.layers[name], np.ndarray) for name in ("mdsc_mean", "mdsc_sd"))
    assert "leaves out" not in capsys.readouterr().out
    floor = float(np.median(whole.layers["mdsc_mean"][dense(whole.layers["mdsc_hidden"])]))
    flags = ("--mean-floor", str(floor), "--quantiles", "0.5")
    found = sample(checkpoint, tmp_path, cells(), *RATIO, *flags, name="found")
    assert isinstance(found.layers["mdsc_mean"], sp.csr_matrix)
    mean, hidden = whole.layers["mdsc_mean"], dense(found.layers["mdsc_hidden"])
    kept = ~hidden | (mean >= np.float32(floor))
    assert 0.4 < kept[hidden].mean() < 0.6
    assert np.array_equal(dense(found.layers["mdsc_mean"]), np.where(kept, mean, 0))
    assert np.array_equal(dense(found.layers["mdsc_sd"]), np.where(kept, whole.layers["mdsc_sd"], 0))
    share = mean[hidden & ~kept].sum() / mean[hidden].sum()
    assert found.uns["mdsc"]["mean_left_out"] == pytest.approx(share, rel=1e-4)
    assert f"{share:.2%} of the hidden counts that are expected" in capsys.readouterr().out


def test_in_memory_and_in_files_are_the_same(checkpoint: Path, tmp_path: Path):
    options = {"num_draws": 2, "quantiles": (0.25,), "num_steps": 4, "batch_size": 4}
    there = sample(
        checkpoint, tmp_path, cells(), *RATIO, "--num-draws", "2", "--quantiles", "0.25", "--batch-size", "4"
    )
    here = inpaint_anndata(checkpoint, cells(), mask_ratio=0.8, **options)
    assert set(here.layers) == set(there.layers)
    for name in here.layers:
        assert here.layers[name].dtype == there.layers[name].dtype
        assert np.array_equal(dense(here.layers[name]), dense(there.layers[name])), name
    assert here.uns["mdsc"].keys() == there.uns["mdsc"].keys()
    assert here.var["mdsc_modelled"].equals(there.var["mdsc_modelled"])


def test_layers_of_an_older_filling_go(checkpoint: Path, tmp_path: Path):
    first = sample(checkpoint, tmp_path, cells(), *RATIO, "--num-draws", "3", name="first")
    first.layers["mdsc_of_mine"] = first.X.copy()
    second = sample(checkpoint, tmp_path, first, *RATIO, "--seed", "1", name="second")
    assert list(second.layers) == ["mdsc_hidden", "mdsc_mean", "mdsc_of_mine", "mdsc_sampled"]
    assert not same_bits(second.layers["mdsc_sampled"], first.layers["mdsc_sampled"])
    assert second.uns["mdsc"]["seed"] == 1
    assert list(second.var.columns) == ["mdsc_modelled"]
    within = inpaint_anndata(checkpoint, first, mask_ratio=0.8, num_steps=4, seed=1)
    assert set(within.layers) == set(second.layers)


def test_all_else_is_copied_as_it_is_stored(checkpoint: Path, tmp_path: Path):
    adata = cells()
    adata.obsp["distances"] = sp.csr_matrix(np.eye(9))
    adata.varm["loadings"] = np.ones((len(GENES), 3))
    adata.raw = adata[:, :20].copy()
    adata.uns["nested"] = {"deep": {"array": np.arange(4)}, "text": "x"}
    adata.obs["day"] = pd.Categorical(["2", "1", "2"] * 3, categories=["2", "1"], ordered=True)
    filled = sample(checkpoint, tmp_path, adata)
    assert filled.obs["day"].cat.categories.tolist() == ["2", "1"]
    assert filled.raw.shape == (9, 20)
    with h5py.File(tmp_path / "filled_input.h5ad") as old, h5py.File(tmp_path / "filled.h5ad") as new:
        names = []
        old.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) >= 20
        for name in names:
            assert np.array_equal(old[name][()], new[name][()]), name
            assert (old[name].dtype, old[name].chunks) == (new[name].dtype, new[name].chunks)


def test_a_file_of_an_old_anndata(checkpoint: Path, tmp_path: Path):
    """Without encodings, as before 2021: it is read whole and written anew."""
    adata = cells()
    first = sample(checkpoint, tmp_path, adata, name="first")
    with h5py.File(tmp_path / "first_input.h5ad", "r+") as file:
        file.attrs.clear()
    files = ["--input", str(tmp_path / "first_input.h5ad"), "--output", str(tmp_path / "again.h5ad")]
    assert main(["sample", "--checkpoint", str(checkpoint), *files, *RATIO, "--num-steps", "4"]) == 0
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    assert same_bits(again.layers["mdsc_sampled"], first.layers["mdsc_sampled"])
    assert again.obs.equals(first.obs)


def test_raw_takes_its_genes_and_its_counts(checkpoint: Path, tmp_path: Path):
    adata = cells()
    adata.obsm["X_pca"] = np.ones((9, 2))
    adata.raw = adata.copy()
    adata = adata[:, :10].copy()
    adata.layers["scaled"] = dense(adata.X) * 0.5
    filled = sample(checkpoint, tmp_path, adata, *RATIO, "--layer", "raw")
    assert filled.shape == (9, len(GENES))
    assert filled.raw is None
    assert "scaled" not in filled.layers
    assert filled.obsm["X_pca"].shape == (9, 2)
    assert same_bits(filled.X, cells().X)


def test_cells_without_counts_are_filled_and_told(checkpoint: Path, tmp_path: Path, capsys):
    adata = cells()
    adata.X = sp.csr_matrix(dense(adata.X) * (~np.isin(np.arange(9), [2, 5]))[:, None])
    filled = sample(checkpoint, tmp_path, adata)
    assert "2 of 9 cells have no counts at all" in capsys.readouterr().out
    assert layers(filled)["mean"][2].sum() > 0


def test_hiding_everything_is_told(checkpoint: Path, tmp_path: Path, capsys):
    sample(checkpoint, tmp_path, cells(), "--mask-ratio", "1")
    assert "hiding all 40 modelled genes of each cell: its counts say nothing" in capsys.readouterr().out


def test_a_wide_dense_file_is_read_in_parts(checkpoint: Path, tmp_path: Path, monkeypatch):
    """Never more of it than READ_POSITIONS at once."""
    adata = AnnData(np.zeros((300, 1000), dtype=np.float32), var=pd.DataFrame(index=[*GENES, *map(str, range(960))]))
    adata.X[:, :40] = dense(cells(20).X)[np.arange(300) % 20]
    monkeypatch.setattr("mdsc.sampling.anndata_inpainting.READ_POSITIONS", 20_000)
    read = []
    getitem = h5py.Dataset.__getitem__

    def watched(self, args, **options):
        found = getitem(self, args, **options)
        read.append(getattr(found, "size", 0))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    monkeypatch.setattr("mdsc.data.anndata_counts.SAMPLE_ENTRIES", 5000)
    adata.write_h5ad(tmp_path / "wide.h5ad")
    files = ["--input", str(tmp_path / "wide.h5ad"), "--output", str(tmp_path / "filled.h5ad")]
    flags = ["--num-draws", "0", "--batch-size", "10"]
    assert main(["sample", "--checkpoint", str(checkpoint), *files, *RATIO, *flags]) == 0
    assert 10_000 <= max(read) <= 20_000


def test_a_keyword_that_is_no_option():
    with pytest.raises(TypeError, match=r"there is no option num_step; the options are batch_size, .*num_steps"):
        inpaint_anndata(tiny_checkpoint(GENES), cells(), mask_ratio=0.5, num_step=3)
