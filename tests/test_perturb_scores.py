"""The scores of perturbation cannot be gamed: oracle, constants, permuted labels, controls; intervals are paired."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from perturbed_cells import drawn, simulated

from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError
from mdsc.evaluation.perturb_baselines import ALL, ORACLE
from mdsc.evaluation.perturb_estimates import PerturbScores, pooled
from mdsc.evaluation.perturb_metrics import CORRELATIONS, HIGHER_IS_BETTER
from mdsc.evaluation.perturb_scores import score
from mdsc.evaluation.perturb_table import scores_table, table_rows, verdicts
from mdsc.evaluation.perturb_task import PerturbTask, Prediction

MADE = simulated(num_perturbations=20, num_test=8, cells=60)
TASK = PerturbTask.of_anndata(MADE.adata, vectors=MADE.vectors)


def cells_of(rate: np.ndarray, seed: int, number: int = 60) -> np.ndarray:
    counts = drawn(rate, number, np.random.default_rng(seed))
    return log_normalised(sp.csr_matrix(counts)).toarray().astype(np.float32)


def right(name: str = "right", order=None) -> Prediction:
    """Fresh cells of the true laws, under permuted labels where an order is given."""
    order = np.arange(len(TASK.units)) if order is None else order
    laws = [TASK.units[place] for place in order]
    return Prediction(
        name,
        {
            unit: cells_of(MADE.rates["", law.perturbation], 100 + place)
            for place, (unit, law) in enumerate(zip(TASK.units, laws, strict=True))
        },
    )


def constant(name: str, cells: np.ndarray, means: np.ndarray | None = None) -> Prediction:
    return Prediction(name, dict.fromkeys(TASK.units, cells), {} if means is None else dict.fromkeys(TASK.units, means))


@pytest.fixture(scope="module")
def scores() -> PerturbScores:
    one_effect = TASK.dense(TASK.controls("")) + np.random.default_rng(0).normal(0, 0.5, 60).astype(np.float32)
    predictions = [
        right(),
        constant("zeros", np.zeros((60, 60), dtype=np.float32)),
        constant("controls", TASK.dense(TASK.controls(""))),
        constant("one effect", one_effect),
    ]
    return score(TASK, predictions, num_bootstrap=200)


def mean(scores: PerturbScores, method: str, metric: str) -> float | None:
    found = scores.estimate(method, metric)
    return None if found is None else found.mean


def test_the_oracle_beats_every_baseline_and_constant(scores):
    for metric, higher in HIGHER_IS_BETTER.items():
        oracle = mean(scores, ORACLE, metric)
        for method in scores.values:
            if method in (ORACLE, "right", "ridge") or (value := mean(scores, method, metric)) is None:
                continue
            assert (oracle > value) if higher else (oracle < value), (method, metric)


def test_the_right_law_is_at_the_oracle(scores):
    """Its mean is of the full noise of its own cells; distances of equal laws are 0 in the mean."""
    assert mean(scores, "right", "pearson_delta") > 0.9
    assert mean(scores, "right", "pearson_delta_pert") > 0.85
    assert mean(scores, "right", "discrimination_l1") == 1.0
    for metric in ("e_distance", "mmd2"):
        values = scores.values["right"][metric]
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values)) + 1e-3
        assert mean(scores, "control_mean", metric) > 5 * abs(values.mean())


def test_constant_predictions_are_not_defined_in_correlations(scores):
    for method, metrics in {
        "controls": CORRELATIONS,
        "control_mean": CORRELATIONS,
        "zeros": CORRELATIONS,
        "one effect": ("pearson_delta_pert",),
        "perturbed_mean": ("pearson_delta_pert",),
    }.items():
        for metric in metrics:
            assert mean(scores, method, metric) is None, (method, metric)
            assert scores.undefined(method, metric) == len(TASK.units)
    assert mean(scores, "control_mean", "discrimination_cosine") is None
    assert mean(scores, "perturbed_mean", "pearson_delta") > 0.2, "the systematic effect, which PearsonDelta rewards"
    # One prediction for all has every rank once.
    chance = (len(TASK.units) + 1) / (2 * len(TASK.units))
    for method in ("controls", "zeros", "perturbed_mean"):
        assert mean(scores, method, "discrimination_l1") == pytest.approx(chance, abs=0.15)


def test_undefined_is_null_in_json_and_na_in_the_table(scores):
    found = scores.to_json()
    text = json.dumps(found, allow_nan=False)
    assert "NaN" not in text
    row = found["baselines"]["control_mean"]
    for metric in CORRELATIONS:
        assert row[metric] is None
        assert row["median"][metric] is None
        assert row["interval"][metric] is None
        assert row["undefined"][metric] == len(TASK.units)
        assert set(row["per_unit"][metric].values()) == {None}
        assert found["models"]["right"]["difference"]["control_mean"][metric] is None
    row = next(row for row in table_rows(scores) if row[0] == "control_mean")
    assert row[1:5] == ["n/a"] * 4
    assert not any("nan" in cell.lower() for one in table_rows(scores) for cell in one[1:])
    assert scores_table(scores).row_count == len(scores.values)


def test_one_prediction_is_the_model():
    found = score(TASK, [right()], baselines=("control_mean", "ridge"), num_bootstrap=50).to_json()
    assert set(found) == {"model", "baselines", "settings"}
    assert list(found["baselines"]) == ["control_mean", "ridge", ORACLE]
    assert found["model"]["difference"]["ridge"]["pearson_delta"]["units"] == len(TASK.units)


def test_permuted_labels_are_at_chance():
    """Mean over permutations of what the right cells score under wrong names."""
    found = {metric: [] for metric in ("discrimination_l1", "discrimination_cosine", "pearson_delta_pert")}
    right_scores = score(TASK, [right()], baselines=("control_mean",), num_bootstrap=2)
    for seed in range(24):
        order = np.random.default_rng(seed).permutation(len(TASK.units))
        one = score(TASK, [right(order=order)], baselines=("control_mean",), num_bootstrap=2)
        for metric, values in found.items():
            values.append(mean(one, "right", metric))
    # Over all permutations each true effect is met as often; its own among them, once in N.
    number = len(TASK.units)
    chance = (number + 1) / (2 * number)
    for metric in ("discrimination_l1", "discrimination_cosine"):
        error = np.std(found[metric]) / np.sqrt(24)
        assert np.mean(found[metric]) == pytest.approx(chance, abs=4 * error)
        assert mean(right_scores, "right", metric) > 0.95
    assert np.mean(found["pearson_delta_pert"]) < 0.3 * mean(right_scores, "right", "pearson_delta_pert")


def test_predicted_controls_change_nothing():
    """Effects are taken from the real controls, whatever the file calls a control."""
    import pandas as pd

    adata = MADE.adata[: 60 * (len(TASK.units) + 1)].copy()
    cells = [right().cells[unit] for unit in TASK.units]
    names = np.repeat(["ctrl", *(unit.perturbation for unit in TASK.units)], 60)
    found = []
    for controls in (np.zeros((60, 60)), np.full((60, 60), 5.0)):
        adata.X = np.concatenate([controls, *cells]).astype(np.float32)
        adata.obs = pd.DataFrame({"perturbation": names}, index=adata.obs_names)
        prediction = Prediction.of_anndata(adata, TASK)
        found.append(score(TASK, [prediction], baselines=("control_mean",), num_bootstrap=2).values)
    for metric, values in found[0]["the prediction"].items():
        np.testing.assert_array_equal(values, found[1]["the prediction"][metric])


def test_intervals_of_differences_are_paired():
    """A model that is a bit better everywhere is told apart, though both vary much from unit to unit."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 30)
    units = tuple(sorted(TASK.units[0].__class__("", f"U{n}") for n in range(30)))
    rows = {name: {"pearson_delta": hard + gain} for name, gain in (("model", 0.1), ("control_mean", 0.0))}
    rows["model"] = {"pearson_delta": rows["model"]["pearson_delta"] + rng.normal(0, 0.05, 30)}
    rows["control_mean"]["pearson_delta"][3] = np.nan
    scores = PerturbScores(units, rows, ("model",), {}, seed=0, num_bootstrap=2000)
    gap = scores.difference("model", "control_mean", "pearson_delta")
    assert gap.units == 29
    assert gap.interval[0] > 0.05
    assert gap.interval[1] < 0.15
    own = scores.estimate("model", "pearson_delta")
    error = rows["model"]["pearson_delta"].std() / np.sqrt(30)
    assert own.interval[1] - own.interval[0] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert scores.undefined("control_mean", "pearson_delta") == 1
    constant = {"model": {"mse": np.where(np.arange(30) % 3 > 0, 2.0, np.nan)}}
    some = PerturbScores(units, constant, ("model",), {}).estimate("model", "mse")
    assert (some.mean, some.interval, some.units) == (2.0, (2.0, 2.0), 20), "what is not defined is no 0"
    alone = PerturbScores(units[:1], {"model": {"mse": np.ones(1)}}, ("model",), {})
    assert alone.estimate("model", "mse").interval is None


def test_verdicts_say_who_wins(scores):
    said = {verdict.text.partition(":")[0]: verdict for verdict in verdicts(scores)}
    assert said["e_distance, right"].kind == "good"
    assert "the model is better" in said["e_distance, right"].text
    assert said["e_distance, zeros"].kind == "bad"
    assert "WORSE" in said["e_distance, zeros"].text
    assert "n/a for all 8 perturbations" in said["pearson_delta_pert, zeros"].text
    assert "perturbed_mean" not in said["pearson_delta_pert, right"].text


def test_a_baseline_that_is_defined_for_few_is_not_the_best():
    values = {"model": np.full(4, 0.3), "bilinear": np.array([0.9, np.nan, np.nan, np.nan]), "ridge": np.full(4, 0.2)}
    scores = PerturbScores(TASK.units[:4], {name: {"delta20": row} for name, row in values.items()}, ("model",), {})
    assert scores.best_baseline("delta20") == "ridge"
    values["knn"] = np.array([0.25, 0.25, 0.25, np.nan])
    scores = PerturbScores(TASK.units[:4], {name: {"delta20": row} for name, row in values.items()}, ("model",), {})
    assert scores.best_baseline("delta20") == "knn", "one that lacks a perturbation is no less a rival"


def test_the_same_seed_gives_the_same_scores_and_no_method_depends_on_others():
    everything = score(TASK, [right()], num_bootstrap=2).values
    few = score(TASK, [right()], baselines=("nearest_cells",), num_bootstrap=2).values
    for method in ("right", "nearest_cells", ORACLE):
        for metric in HIGHER_IS_BETTER:
            np.testing.assert_array_equal(everything[method][metric], few[method][metric])


def test_folds_are_pooled():
    obs = MADE.adata.obs
    folds = []
    for out in (["G1", "G2"], ["G3", "G4", "G5"]):
        adata = MADE.adata.copy()
        adata.obs["split"] = np.where(obs["perturbation"].isin(out), "test", "train")
        task = PerturbTask.of_anndata(adata, vectors=MADE.vectors)
        cells = {unit: cells_of(MADE.rates["", unit.perturbation], 1) for unit in task.units}
        folds.append(score(task, [Prediction("model", cells)], num_bootstrap=50))
    both = pooled(folds)
    assert len(both.units) == 5
    own = [mean(one, "ridge", "mse") for one in folds]
    assert mean(both, "ridge", "mse") == pytest.approx((2 * own[0] + 3 * own[1]) / 5)
    assert json.dumps(both.to_json(), allow_nan=False)


def test_names_that_clash_and_unknown_baselines():
    with pytest.raises(UserError, match="two methods are called 'ridge'"):
        score(TASK, [right("ridge")])
    with pytest.raises(UserError, match="no baseline 'rigde'"):
        score(TASK, [], baselines=("rigde",))
    assert ORACLE not in ALL


def test_resampled_training_cells_are_no_further_off_than_fresh_ones():
    """Where nothing has an effect all cells are of one law. Components of few cells follow these: had the space been
    fitted on the cells that baselines give, or on controls, these would look far from all others."""
    made = simulated(num_perturbations=16, num_test=8, cells=24)
    law = made.rates["", "ctrl"]
    adata = made.adata.copy()
    adata.X = sp.csr_matrix(drawn(law, adata.n_obs, np.random.default_rng(4)))
    task = PerturbTask.of_anndata(adata, vectors=made.vectors)
    fresh = Prediction("fresh", {unit: cells_of(law, place, 24) for place, unit in enumerate(task.units)})
    found = score(task, [fresh], baselines=("control_mean", "perturbed_mean", "nearest_cells"), num_bootstrap=2).values
    for method in found:
        values = found[method]["e_distance"]
        # Units share training and control cells: their errors are not independent, and 6 of their errors are allowed.
        assert abs(values.mean()) < 6 * values.std() / np.sqrt(len(values)), method
