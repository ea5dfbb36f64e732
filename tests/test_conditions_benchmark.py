"""The benchmark of conditions: what is left out is left out, and perfect predictions score as such."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from shared_data import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from conditions_kang import STIMULATED, LeftOut, baselines, mean_log, ridge
from conditions_simulated import KNOWN, log_change, score

from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.prep.simulated_cells import Truth


@pytest.fixture
def cells() -> AnnData:
    """Three types that differ in level; stimulation doubles the first ten genes of all."""
    rng = np.random.default_rng(0)
    kind, is_stimulated = rng.integers(3, size=900), rng.random(900) < 0.5
    means = rng.gamma(2, 2, size=(3, 60))[kind]
    means[:, :10] *= np.where(is_stimulated, 2.0, 1.0)[:, None]
    conditions = np.where(is_stimulated, STIMULATED, CONTROL)
    obs = pd.DataFrame({"cell_type": np.array(["x", "y", "z"])[kind], COLUMN: conditions}).set_index(
        np.arange(900).astype(str)
    )
    return AnnData(sp.csr_matrix(rng.poisson(means).astype(np.int32)), obs=obs)


def test_stimulated_cells_of_the_type_are_in_the_target_alone(cells: AnnData):
    task = LeftOut.of(cells, "y")
    of_type = task.training.obs["cell_type"] == "y"
    assert not (of_type & (task.training.obs[COLUMN] == STIMULATED)).any()
    assert set(task.control.obs_names) == set(task.training.obs_names[of_type])
    assert (task.stimulated.obs == ["y", STIMULATED]).all(axis=None)
    assert task.training.n_obs + task.stimulated.n_obs == 900


def test_the_truth_scores_1_and_a_common_change_is_found_by_its_mean(cells: AnnData):
    task = LeftOut.of(cells, "y")
    assert task.score(task.delta(task.stimulated)) == pytest.approx(1)
    scores = baselines(task)
    assert scores["control mean"] is None
    assert min(scores[name] for name in scores if "change" in name or "ridge" in name) > 0.85
    # Half of so few cells has more noise than the mean over two other types.
    assert 0.7 < scores["half of the stimulated cells (ceiling)"] < scores["mean change of the other types"]
    assert scores["mean of other types' stimulated cells"] < 0.5, "the types differ by more than their change"


def test_means_are_of_log1p_of_counts_per_10_000():
    counts = np.array([[1, 3, 0], [0, 0, 0], [2, 0, 2]])
    expected = np.log1p(1e4 * np.array([[0.25, 0.75, 0], [0.5, 0, 0.5]])).mean(axis=0)
    np.testing.assert_allclose(mean_log(sp.csr_matrix(counts)), expected)


def test_ridge_finds_a_linear_law():
    rng = np.random.default_rng(1)
    control, law = rng.normal(size=(40, 3)), rng.normal(size=(3, 5))
    own = rng.normal(size=3)
    np.testing.assert_allclose(ridge(control, control @ law + 1, own), own @ law + 1, atol=0.05)


def test_an_effect_without_noise_scores_1():
    truth = Truth.of(replace(KNOWN, num_genes=40, genes_per_drug=8))
    depth = 1e6
    treated, control = (depth * truth.probabilities[0, truth.drugs.index(drug)] for drug in ("drug1", "control"))
    found = score(log_change(treated, control), truth, "drug1")
    assert found["r"] == pytest.approx(1, abs=1e-6)
    assert found["slope"] == pytest.approx(1, abs=1e-4)
