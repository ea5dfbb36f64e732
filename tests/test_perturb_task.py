"""Real and predicted perturbed cells as they are read: labels, splits, genes by name, what is refused."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from perturbed_cells import simulated

from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError
from mdsc.evaluation.perturb_task import PerturbTask, Prediction, Unit

SIMULATED = simulated(num_perturbations=6, num_test=2, cells=12)
TEST = (Unit("", "G4"), Unit("", "G5"))


def read(adata=None, **options) -> PerturbTask:
    return PerturbTask.of_anndata(SIMULATED.adata if adata is None else adata, **options)


def prediction_of(names=("G4", "G5"), number=8, labels=None):
    counts = np.concatenate([SIMULATED.counts("", name, number, place) for place, name in enumerate(names)])
    adata = SIMULATED.adata[: len(counts)].copy()
    adata.X = sp.csr_matrix(log_normalised(sp.csr_matrix(counts)), dtype=np.float32)
    adata.obs = pd.DataFrame({"perturbation": np.repeat(labels or list(names), number)}, index=adata.obs_names)
    return adata


def test_units_cells_and_the_reference():
    task = read()
    assert task.units == TEST
    assert [unit.perturbation for unit in task.training_units] == ["G0", "G1", "G2", "G3"]
    logs = log_normalised(sp.csr_matrix(SIMULATED.adata.X)).toarray()
    of = SIMULATED.adata.obs["perturbation"].to_numpy()
    np.testing.assert_allclose(task.cells(TEST[0]), logs[of == "G4"], atol=1e-6)
    np.testing.assert_allclose(task.reference(""), logs[of == "ctrl"].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(task.mean(TEST[1]), logs[of == "G5"].mean(axis=0), atol=1e-6)
    assert not {"G4", "G5"} & set(task.seen.perturbation)
    assert len(task.seen.controls("")) == 48


def test_names_of_perturbations_are_made_one():
    adata = SIMULATED.adata.copy()
    written = {"ctrl": "non-targeting", "G4": "G4+ctrl", "G0": "ctrl+G0", "G1": "G1+G2"}
    adata.obs["guide"] = [written.get(name, name) for name in adata.obs["perturbation"]]
    task = read(adata, perturbation_column="guide", control_label="non-targeting")
    assert task.units == TEST
    assert {unit.perturbation for unit in task.training_units} == {"G0", "G1+G2", "G2", "G3"}


def test_without_a_split_what_was_predicted_is_the_test_part():
    adata = SIMULATED.adata.copy()
    del adata.obs["split"]
    task = read(adata, predicted=[Unit("", "G2")])
    assert task.units == (Unit("", "G2"),)
    assert {unit.perturbation for unit in task.training_units} == {"G0", "G1", "G3", "G4", "G5"}
    # One perturbation, several contexts: those of the context that was predicted.
    cells = simulated(num_perturbations=1, num_test=0, cells=8, contexts=("B", "NK", "T")).adata
    del cells.obs["split"]
    task = read(cells, context_column="context", predicted=[Unit("NK", "G0")])
    assert task.units == (Unit("NK", "G0"),)
    assert {unit.context for unit in task.training_units} == {"B", "T"}
    is_own = ((cells.obs.context == "NK") & (cells.obs.perturbation == "ctrl")).to_numpy()
    own = log_normalised(sp.csr_matrix(cells.X))[is_own]
    np.testing.assert_allclose(task.reference("NK"), own.toarray().mean(axis=0), atol=1e-6)


def test_genes_of_a_prediction_are_matched_by_name():
    task, adata = read(), prediction_of()
    plain = Prediction.of_anndata(adata, task)
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    more = Prediction.of_anndata(shuffled, task)
    for unit in TEST:
        np.testing.assert_array_equal(plain.cells[unit], more.cells[unit])
        np.testing.assert_allclose(plain.mean(unit), plain.cells[unit].mean(axis=0), atol=1e-6)
    lacking = adata[:, 1:].copy()
    with pytest.raises(UserError, match=r"lacks 1 of 60 genes of the task, e.g. G0"):
        Prediction.of_anndata(lacking, task)


def test_raw_counts_in_a_prediction_are_converted_and_said():
    task, adata, said = read(), prediction_of(), []
    logs = Prediction.of_anndata(adata, task)
    adata.X = sp.csr_matrix(
        np.concatenate([SIMULATED.counts("", name, 8, place) for place, name in enumerate(["G4", "G5"])])
    )
    converted = Prediction.of_anndata(adata, task, say=said.append)
    for unit in TEST:
        np.testing.assert_allclose(logs.cells[unit], converted.cells[unit], atol=1e-6)
    assert any("raw counts" in line for line in said)


def test_scaled_values_and_nan_are_refused():
    task, adata = read(), prediction_of()
    dense = adata.X.toarray()
    adata.X = dense - 4.5
    with pytest.raises(UserError, match="neither raw counts nor log1p"):
        Prediction.of_anndata(adata, task)
    adata.X = np.expm1(dense) * 1.01
    with pytest.raises(UserError, match="neither raw counts nor log1p"):
        Prediction.of_anndata(adata, task)
    broken = dense.copy()
    broken[3, 3] = np.nan
    adata.X = broken
    with pytest.raises(UserError, match="NaN or infinite"):
        Prediction.of_anndata(adata, task)
    real = SIMULATED.adata.copy()
    real.X = sp.csr_matrix(real.X)
    real.X.data[5] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        read(real)


def test_predicted_controls_are_left_aside_and_it_is_said():
    task, said = read(), []
    adata = prediction_of(names=("G4", "G5", "G0"), labels=["G4", "G5", "ctrl"])
    found = Prediction.of_anndata(adata, task, say=said.append)
    assert set(found.cells) == set(TEST)
    assert any("8 control cells are left aside" in line and "REAL" in line for line in said)


def test_missing_and_unknown_perturbations():
    task, said = read(), []
    with pytest.raises(UserError, match="has no cells of G5, of 2 test perturbations"):
        Prediction.of_anndata(prediction_of(names=("G4",)), task)
    Prediction.of_anndata(prediction_of(names=("G4", "G5", "G0"), labels=["G4", "G5", "NEW"]), task, say=said.append)
    assert any("NEW" in line and "not in the real cells" in line for line in said)
    Prediction.of_anndata(prediction_of(names=("G4", "G5", "G0")), task, say=said.append)
    assert any("G0" in line and "training perturbations" in line for line in said)


def test_pseudobulks_may_be_of_another_layer():
    task, adata = read(), prediction_of()
    adata.layers["expected"] = adata.X * 0.5
    found = Prediction.of_anndata(adata, task, means_layer="expected")
    for unit in TEST:
        np.testing.assert_allclose(found.mean(unit), 0.5 * found.cells[unit].mean(axis=0), rtol=1e-4)
    with pytest.raises(UserError, match=r"--means-layer: .* has no layer 'expcted'; perhaps you meant expected"):
        Prediction.of_anndata(adata, task, means_layer="expcted")


def test_few_cells_and_contexts_without_controls_are_left_out_and_said():
    adata, said = SIMULATED.adata.copy(), []
    obs = adata.obs
    few = obs.index[obs["perturbation"] == "G5"][4:]
    task = read(adata[~obs.index.isin(few)].copy(), say=said.append)
    assert task.units == TEST[:1]
    assert said == ["G5 has 4 test cells, and 5 are needed: it is left out"]
    contexts = simulated(num_perturbations=4, num_test=1, cells=8, contexts=("B", "T")).adata
    left = contexts[~((contexts.obs.context == "T") & (contexts.obs.perturbation == "ctrl"))].copy()
    task = read(left, context_column="context", say=said.append)
    assert {unit.context for unit in task.units} == {"B"}
    assert "no control cells of T" in said[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"control_label": "crtl"}, "--control-label: .* no control cells 'crtl' .*; perhaps you meant ctrl"),
        ({"perturbation_column": "perturbatoin"}, "--perturbation-column: .* perhaps you meant perturbation"),
        ({"context_column": "cell_type"}, "--context-column: .* has no column"),
        ({"split_column": "splits"}, "--split-column: .* perhaps you meant split"),
        ({"layer": "counts"}, "--layer: .* has no layer 'counts'"),
        ({"split_column": "context"}, "--split-column: .* it takes train, val, test"),
    ],
)
def test_users_mistakes(options, words):
    with pytest.raises(UserError, match=words) as caught:
        read(**options)
    assert str(caught.value).count("\n") <= 1


def test_nothing_to_test_or_to_train_on():
    adata = SIMULATED.adata.copy()
    adata.obs["split"] = "train"
    with pytest.raises(UserError, match="no test perturbation"):
        read(adata)
    adata.obs["split"] = "test"
    with pytest.raises(UserError, match="no training perturbation"):
        read(adata)
