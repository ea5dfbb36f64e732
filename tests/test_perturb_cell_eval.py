"""Our metrics beside those of the cell-eval package, where the definitions coincide; skipped where it is missing."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from perturbed_cells import drawn, simulated

from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError
from mdsc.evaluation import perturb_cell_eval
from mdsc.evaluation.perturb_cell_eval import cell_eval_pair, run_cell_eval
from mdsc.evaluation.perturb_scores import score
from mdsc.evaluation.perturb_task import PerturbTask, Prediction

MADE = simulated(num_perturbations=12, num_test=7, cells=30)
TASK = PerturbTask.of_anndata(MADE.adata)


def predicted() -> Prediction:
    """Right laws, each mixed with a neighbour's, so that no rank is certain."""
    cells = {}
    for place, unit in enumerate(TASK.units):
        rng = np.random.default_rng(place)
        laws = [TASK.units[place], TASK.units[(place + 1) % len(TASK.units)]]
        rates = [MADE.rates["", law.perturbation] for law in laws]
        counts = np.concatenate([drawn(rate, 12, rng) for rate in rates])
        cells[unit] = log_normalised(sp.csr_matrix(counts)).toarray().astype(np.float32)
    return Prediction("model", cells)


def test_the_real_controls_are_in_both_files():
    real, made = cell_eval_pair(TASK, predicted(), "")
    for adata in (real, made):
        controls = adata[(adata.obs["perturbation"] == "ctrl").to_numpy()].X.toarray()
        np.testing.assert_array_equal(controls, TASK.dense(TASK.controls("")))
        assert list(adata.var_names) == list(TASK.genes)
    assert set(real.obs["perturbation"]) == set(made.obs["perturbation"])
    assert {unit.perturbation for unit in TASK.units} < set(TASK.genes), "its target-gene exclusion goes by names"


def test_agrees_with_cell_eval(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("cell_eval")
    prediction = predicted()
    table = run_cell_eval(TASK, prediction, tmp_path, profile="anndata")[""].set_index("perturbation")
    ours = score(TASK, [prediction], baselines=("control_mean",), num_bootstrap=2)
    pairs = {
        "pearson_delta": "pearson_delta",
        "mse": "mse",
        "mae": "mae",
        "discrimination_l1": "discrimination_score_l1",
        "discrimination_cosine": "discrimination_score_cosine",
    }
    for metric, theirs in pairs.items():
        expected = table.loc[[unit.perturbation for unit in TASK.units], theirs].to_numpy(dtype=float)
        np.testing.assert_allclose(ours.values["model"][metric], expected, atol=1e-5, err_msg=metric)
    assert (tmp_path / "real.h5ad").is_file()
    assert np.ptp(ours.values["model"]["discrimination_l1"]) > 0, "not all ranks are the same"


def test_without_the_package_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "cell_eval", None)
    with pytest.raises(UserError, match=r"--cell-eval needs the package cell-eval: pip install"):
        perturb_cell_eval.run_cell_eval(TASK, predicted(), tmp_path)
