"""The simulator: its cells follow its truth, and are the same however many are asked for and wherever they go."""

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from mdsc.data.anndata_counts import read_counts
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.simulate import main, simulate_anndata, simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth, simulate_chunks

SMALL = SimulationConfig(num_cells=2300, num_genes=40, num_types=3, num_drugs=2, genes_per_drug=5, median_depth=150.0)


def cells_of(truth):
    chunks = list(simulate_chunks(truth))
    fields = [np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("cell_type", "drug", "depth")]
    return np.concatenate([chunk.counts.toarray() for chunk in chunks]), *fields


def test_first_cells_are_the_same_in_any_total():
    few = cells_of(Truth.of(SimulationConfig(num_cells=1010, num_genes=40)))
    many = cells_of(Truth.of(SimulationConfig(num_cells=2100, num_genes=40)))
    for short, long in zip(few, many, strict=True):
        assert (long[:1010] == short).all()
    other = cells_of(Truth.of(SimulationConfig(num_cells=1010, num_genes=40, seed=1)))
    assert not np.array_equal(other[0], few[0])
    assert not np.array_equal(many[0][:1000], many[0][1000:2000])


def test_drugs_change_the_genes_that_the_truth_names():
    truth = Truth.of(SMALL)
    assert truth.probabilities.shape == (3, 3, 40)
    np.testing.assert_allclose(truth.probabilities.sum(-1), 1)
    assert ((truth.effects != 0).sum(1) == [0, 5, 5]).all()
    change = np.log(truth.probabilities[:, 1:] / truth.probabilities[:, :1])
    # The shares of a cell sum to one, so that effects show up to a constant per cell type and drug.
    constant = (change - truth.effects[1:])[..., :1]
    np.testing.assert_allclose(change - constant, np.broadcast_to(truth.effects[1:], change.shape), atol=1e-12)


def test_counts_follow_the_stated_law():
    """Probability integral transform: a uniform number between cdf(count - 1) and cdf(count) is uniform."""
    from scipy.stats import kstest, nbinom

    truth = Truth.of(SMALL)
    counts, cell_type, drug, depth = cells_of(truth)
    r, means = SMALL.dispersion, truth.means(cell_type, drug, depth)
    upper = nbinom.cdf(counts, r, r / (r + means))
    mass = np.exp(truth.log_pmf(counts, cell_type, drug, depth))
    position = upper - mass * np.random.default_rng(0).random(counts.shape)
    assert kstest(position.ravel(), "uniform").pvalue > 1e-3
    assert kstest(np.log(depth / SMALL.median_depth) / SMALL.depth_spread, "norm").pvalue > 1e-3
    # A wrong dispersion is noticed, so that the test above can fail.
    wrong = nbinom.cdf(counts, 4 * r, 4 * r / (4 * r + means))
    assert kstest(wrong.ravel() - mass.ravel() * 0.5, "uniform").pvalue < 1e-6


def test_log_pmf_sums_to_one():
    truth = Truth.of(SMALL)
    counts = np.repeat(np.arange(3000)[:, None], 40, axis=1)
    ones = np.ones(3000, dtype=np.int64)
    mass = np.exp(truth.log_pmf(counts, ones, ones, np.full(3000, 120.0)))
    np.testing.assert_allclose(mass.sum(0), 1, atol=1e-9)


def test_shards_file_and_memory_hold_the_same_cells(tmp_path, capsys):
    args = ["--num-cells", "1500", "--num-genes", "30", "--genes-per-drug", "4", "--seed", "3"]
    main(["--output-dir", str(tmp_path / "s"), "--h5ad", str(tmp_path / "cells.h5ad"), *args])
    assert capsys.readouterr().err == ""
    folder = ShardFolder.open(tmp_path / "s")
    truth = Truth.load(tmp_path / "s/truth.safetensors")
    assert truth.config.seed == 3
    assert (truth.probabilities == Truth.of(truth.config).probabilities).all()
    memory, file = simulate_anndata(truth), anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (memory.X != file.X).nnz == 0
    assert (read_counts(tmp_path / "cells.h5ad").counts != memory.X).nnz == 0
    assert (memory.obs["depth"] == file.obs["depth"]).all()
    for split in ("train", "heldout"):
        expected, got = memory[memory.obs["split"] == split], folder.to_anndata(split)
        assert (got.X != expected.X).nnz == 0
        assert got.obs_names.tolist() == expected.obs_names.tolist()
        assert (got.obs["drug"] == expected.obs["drug"]).all()
    assert 0.15 < folder.num_cells("heldout") / 1500 < 0.25


def test_all_cells_may_be_for_training(tmp_path):
    truth = Truth.of(SimulationConfig(num_cells=20, num_genes=30, heldout_fraction=0.0))
    assert simulate_shards(truth, tmp_path / "s").splits == ("train",)


def test_wrong_options_are_told(tmp_path):
    with pytest.raises(UserError, match="give --output-dir, --h5ad or both"):
        main(["--num-cells", "10"])
    with pytest.raises(UserError, match="no more genes per drug than genes"):
        SimulationConfig(num_genes=10)


def test_effects_may_be_linear_in_features_and_drugs_without_training_cells(tmp_path: Path):
    sizes = {"num_cells": 600, "num_genes": 30, "genes_per_drug": 6, "num_drugs": 5}
    config = SimulationConfig(**sizes, feature_size=2, unseen_drugs=2)
    truth = Truth.of(config)
    assert np.linalg.matrix_rank(truth.effects) == 2
    known = truth.features[1:4]
    weights = np.linalg.lstsq(known, truth.effects[1:4], rcond=None)[0]
    np.testing.assert_allclose(truth.features @ weights, truth.effects, atol=1e-10)
    folder = simulate_shards(truth, tmp_path / "shards")
    assert folder.manifest.conditions["drug"] == ("control", "drug1", "drug2", "drug3")
    obs = simulate_anndata(truth).obs
    assert set(obs["drug"][obs["split"] == "heldout"]) == set(truth.drugs)
    loaded = Truth.load(tmp_path / "shards" / "truth.safetensors")
    np.testing.assert_array_equal(loaded.features, truth.features)
    plain = Truth.of(replace(config, feature_size=0))
    np.testing.assert_array_equal(plain.features, np.zeros((6, 0)))
    plain.save(tmp_path / "truth.safetensors")
    assert Truth.load(tmp_path / "truth.safetensors").features.shape == (6, 0)
