"""Baselines of perturbation: by hand, where the right answer is known, and blind to every test cell."""

import numpy as np
import pytest
import scipy.sparse as sp
from perturbed_cells import simulated

from mdsc.data.gene_set_file import read_gmt, sets_of_genes
from mdsc.errors import UserError
from mdsc.evaluation.perturb_baselines import ALL, fit_baselines, known_of
from mdsc.evaluation.perturb_regressions import bilinear, nearest_keys, ridge
from mdsc.evaluation.perturb_task import PerturbTask, Unit

NAMES = tuple(ALL)


def task_of(made, **options) -> PerturbTask:
    return PerturbTask.of_anndata(made.adata, vectors=made.vectors, **options)


@pytest.fixture(scope="module")
def made():
    return simulated()


@pytest.fixture(scope="module")
def gene_sets(made):
    """Genes of alike vectors share sets."""
    return {name: frozenset({f"{np.sign(v[0])}", f"{np.sign(v[1])}", name}) for name, v in made.vectors.items()}


@pytest.fixture(scope="module")
def task(made, gene_sets):
    return task_of(made, gene_sets=gene_sets)


@pytest.fixture(scope="module")
def fitted(task):
    return {prediction.name: prediction for prediction in fit_baselines(task, NAMES, seed=0)}


def test_all_that_apply_are_there(fitted):
    assert set(fitted) == set(NAMES) - {"linear_shift", "additive"}


def test_means_by_hand(task, fitted):
    reference = task.reference("")
    effects = {unit.perturbation: task.mean(unit, "train") - reference for unit in task.training_units}
    mean = np.mean(list(effects.values()), axis=0)
    centroids = np.mean([task.mean(unit, "train") for unit in task.training_units], axis=0)
    shares = [1 + effects[name][task.genes.index(name)] / reference[task.genes.index(name)] for name in effects]
    for unit in task.units:
        np.testing.assert_allclose(fitted["control_mean"].mean(unit), reference)
        np.testing.assert_allclose(fitted["perturbed_mean"].mean(unit), centroids, atol=1e-9)
        lowered, target = fitted["perturbed_mean_knock_down"].mean(unit), task.genes.index(unit.perturbation)
        expected = (reference + mean).copy()
        expected[target] = np.mean(shares) * reference[target]
        np.testing.assert_allclose(lowered, expected, atol=1e-9)
        assert lowered[target] < 0.7 * reference[target]


def test_cells_agree_with_means_and_are_as_many_as_wanted(task, fitted):
    for name, prediction in fitted.items():
        for unit in task.units:
            cells = prediction.cells[unit]
            # One neighbour has no more cells to resample than half of its own.
            assert len(cells) == (20 if name == "nearest_cells" else len(task.rows(unit))), name
            assert cells.dtype == np.float32
            # The cells are a draw: of the mean's noise, not farther.
            noise = 6 * task.expression.toarray().std(axis=0) / np.sqrt(len(cells)) + 0.02
            assert (np.abs(cells.mean(axis=0) - prediction.mean(unit)) < noise).all(), name


def test_ridge_and_neighbours_know_unseen_perturbations_where_embeddings_tell_them(task, fitted):
    """And the mean does not. Squared errors of effects, over all test perturbations."""

    def error(name: str) -> float:
        return float(np.mean([np.square(fitted[name].mean(unit) - task.mean(unit)).mean() for unit in task.units]))

    assert error("ridge") < 0.5 * error("perturbed_mean")
    assert error("knn") < error("perturbed_mean") < error("control_mean")


def test_ridge_is_the_one_of_its_formula(task):
    """Centred features and effects, the penalty of least error by leaving one out, all of it by the slow way."""
    known = known_of(task, 0)
    keys, x, y = known.table
    scale = np.square(x - x.mean(axis=0)).sum(axis=1).mean()

    def predicted(rows, alpha, new):
        mx, my = x[rows].mean(axis=0), y[rows].mean(axis=0)
        a = x[rows] - mx
        weight = np.linalg.solve(a.T @ a + alpha * np.eye(x.shape[1]), a.T @ (y[rows] - my))
        return my + (new - mx) @ weight

    everyone = np.arange(len(keys))
    errors = {
        alpha: sum(np.square(predicted(np.delete(everyone, one), alpha, x[one]) - y[one]).sum() for one in everyone)
        for alpha in np.logspace(-3, 3, 13) * scale
    }
    best = min(errors, key=errors.get)
    found = ridge(known)
    for unit in task.units:
        np.testing.assert_allclose(found[unit], predicted(everyone, best, known.vectors[unit.perturbation]), atol=1e-6)


def test_nearest_keys_are_the_nearest(task):
    known = known_of(task, 0)
    found = nearest_keys(known)
    for unit, keys in found.items():
        distance = {
            key: np.linalg.norm(known.vectors[key] - known.vectors[unit.perturbation]) for key in known.units_of
        }
        assert keys == sorted(distance, key=distance.get)[: len(keys)]
    # As many as predict training effects best, each by others than itself.
    names = list(known.units_of)
    errors = {}
    for number in (1, 2, 3, 5, 8, 12):
        errors[number] = 0.0
        for name in names:
            others = sorted(set(names) - {name}, key=lambda n: np.linalg.norm(known.vectors[n] - known.vectors[name]))
            guess = np.mean([known.effect_of_key[other] for other in others[:number]], axis=0)
            errors[number] += np.square(guess - known.effect_of_key[name]).sum()
    assert len(keys) == min(errors, key=errors.get)


def test_the_forest_averages_training_effects(task, fitted):
    effects = np.stack(list(known_of(task, 0).effect_of.values()), axis=1)
    for unit in task.units:
        delta = fitted["forest_go"].mean(unit) - task.reference("")
        weights, *_ = np.linalg.lstsq(effects, delta, rcond=None)
        np.testing.assert_allclose(effects @ weights, delta, atol=1e-6)
        assert weights.sum() == pytest.approx(1)
        assert weights.min() > -1e-6


def test_bilinear_solves_its_normal_equations(task):
    known = known_of(task, 0)
    found = bilinear(known)
    keys = list(known.units_of)
    effects = np.stack([known.effect_of_key[key] for key in keys], axis=1)
    bulks = effects + task.reference("")[:, None]
    centred = bulks - bulks.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    g = centred @ axes.T
    place = [task.genes.index(key) for key in keys]
    p, mean, eye = g[place], effects.mean(axis=1), 0.1 * np.eye(g.shape[1])
    kernel = np.linalg.inv(g.T @ g + eye) @ g.T @ (effects - mean[:, None]) @ p @ np.linalg.inv(p.T @ p + eye)
    for unit in task.units:
        expected = mean + g @ kernel @ g[task.genes.index(unit.perturbation)]
        np.testing.assert_allclose(found[unit], expected, rtol=1e-5, atol=1e-7)


def test_no_baseline_sees_a_test_cell(made, gene_sets, task, fitted):
    """Other test cells, of other perturbed laws: bit-identical baselines."""
    other = made.adata.copy()
    is_test = ((other.obs["split"] == "test") & (other.obs["perturbation"] != "ctrl")).to_numpy()
    counts = other.X.toarray()
    counts[is_test] = np.random.default_rng(9).poisson(30, counts[is_test].shape)
    other.X = sp.csr_matrix(counts)
    changed = PerturbTask.of_anndata(other, vectors=made.vectors, gene_sets=gene_sets)
    for prediction in fit_baselines(changed, NAMES, seed=0):
        for unit in task.units:
            np.testing.assert_array_equal(prediction.mean(unit), fitted[prediction.name].mean(unit))
            np.testing.assert_array_equal(prediction.cells[unit], fitted[prediction.name].cells[unit])


def test_validation_cells_train_nothing(made, task, fitted):
    other = made.adata.copy()
    other.obs["split"] = other.obs["split"].astype(str)
    other.obs.loc[other.obs["perturbation"] == "G0", "split"] = "val"
    mean = fit_baselines(task_of(simulated_like(made, other)), ("perturbed_mean",), seed=0)[0]
    left = [task.mean(unit, "train") for unit in task.training_units if unit.perturbation != "G0"]
    np.testing.assert_allclose(mean.mean(task.units[0]), np.mean(left, axis=0), atol=1e-6)


def simulated_like(made, adata):
    return type(made)(adata, made.vectors, made.rates)


def test_a_perturbation_without_features_has_no_prediction_by_them(made):
    vectors = {name: vector for name, vector in made.vectors.items() if name != "G13"}
    task = PerturbTask.of_anndata(made.adata, vectors=vectors)
    found = {prediction.name: prediction for prediction in fit_baselines(task, NAMES, seed=0)}
    for name in ("ridge", "knn", "nearest_cells"):
        assert found[name].mean(Unit("", "G13")) is None
        assert found[name].mean(Unit("", "G12")) is not None
    assert found["perturbed_mean"].mean(Unit("", "G13")) is not None
    assert "ridge" not in {p.name for p in fit_baselines(PerturbTask.of_anndata(made.adata), NAMES, seed=0)}


def test_doubles_are_sums(made):
    adata = made.adata.copy()
    names = adata.obs["perturbation"].astype(str).replace({"G13": "G0+G1", "G12": "G1+G13"})
    adata.obs["perturbation"] = names
    task = PerturbTask.of_anndata(adata, vectors=made.vectors)
    known = known_of(task, 0)
    found = {prediction.name: prediction for prediction in fit_baselines(task, NAMES, seed=0)}
    effects = [task.mean(Unit("", name), "train") - task.reference("") for name in ("G0", "G1")]
    np.testing.assert_allclose(found["additive"].mean(Unit("", "G0+G1")), task.reference("") + sum(effects), atol=1e-9)
    assert found["additive"].mean(Unit("", "G1+G13")) is None, "G13 was not perturbed by itself in training"
    assert found["additive"].mean(Unit("", "G10")) is None, "a single is no double"
    np.testing.assert_allclose(known.vectors["G0+G1"], made.vectors["G0"] + made.vectors["G1"])


def test_where_contexts_vary_they_are_the_features():
    made = simulated(num_perturbations=1, num_test=0, cells=30, contexts=("A", "B", "C", "D", "E"))
    made.adata.obs["split"] = np.where(made.adata.obs["context"] == "E", "test", "train")
    task = PerturbTask.of_anndata(made.adata, context_column="context")
    unit = Unit("E", "G0")
    found = {prediction.name: prediction for prediction in fit_baselines(task, NAMES, seed=0)}
    expected = {"control_mean", "perturbed_mean", "perturbed_mean_knock_down", "linear_shift", "ridge", "knn"}
    assert set(found) == expected | {"nearest_cells"}
    changes = {c: task.mean(Unit(c, "G0"), "train") - task.reference(c) for c in "ABCD"}
    own = task.reference("E")
    np.testing.assert_allclose(found["perturbed_mean"].mean(unit), own + np.mean(list(changes.values()), axis=0))
    # All cells of the others together: their numbers are equal here.
    others = [task.mean(Unit(c, "G0"), "train") - task.reference(c) for c in "ABCD"]
    np.testing.assert_allclose(found["linear_shift"].mean(unit), own + np.mean(others, axis=0))
    keys = nearest_keys(known_of(task, 0))[unit]
    distance = {c: np.linalg.norm(task.reference(c) - own) for c in "ABCD"}
    assert keys == sorted(distance, key=distance.get)[: len(keys)]
    # Cells of another context are moved by the difference of the control means.
    moved = found["nearest_cells"].cells[unit].mean(axis=0)
    np.testing.assert_allclose(moved, own + np.mean([changes[c] for c in keys], axis=0), atol=0.6)


def test_gene_sets_of_a_gmt_file(tmp_path):
    path = tmp_path / "go.gmt"
    path.write_text("set one\tfrom GO\tG1\tG2,1.0\nset two\t\tG2\t\n")
    assert sets_of_genes(read_gmt(path)) == {"G1": {"set one"}, "G2": {"set one", "set two"}}
    assert sets_of_genes(read_gmt(path), ["G1", "G3"]) == {"G1": {"set one"}}
    path.write_text("nothing here\n")
    with pytest.raises(UserError, match="holds no gene sets"):
        read_gmt(path)
    with pytest.raises(UserError, match=r"there is no file .*none.gmt"):
        read_gmt(tmp_path / "none.gmt")


def test_no_cell_that_a_baseline_gives_has_a_say_in_the_space_of_distances(task, fitted):
    """Components of few cells follow these, which would then look far from all others of their law."""
    known = known_of(task, 0)
    space = {row.tobytes() for row in known.space_cells().toarray()}
    assert len(space) == sum(len(task.rows(unit, "train")) for unit in task.training_units) // 2
    for name in ("control_mean", "perturbed_mean", "nearest_cells"):
        for unit in task.units:
            assert not space & {row.tobytes() for row in fitted[name].cells[unit]}, name
    assert not space & {row.tobytes() for unit in task.units for row in task.cells(unit)}
