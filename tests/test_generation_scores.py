"""Distances between sets of cells against analytic cases; the harness on cells of which the law is known."""

import json
import math

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError
from mdsc.evaluation import generation_scores
from mdsc.evaluation.command_output import plain_console
from mdsc.evaluation.generation_baselines import BASELINES, independent_genes, negative_binomial, training_cells
from mdsc.evaluation.generation_distances import (
    WIDTH_FACTORS,
    chance_of_less,
    classifier_auc,
    has_pot,
    mmd2,
    nearest_distance,
    squared_median,
    wasserstein2,
)
from mdsc.evaluation.generation_gene_fits import correlation_fits, depth_fits, gene_fits, gene_moments, pearson, slope
from mdsc.evaluation.generation_scores import FLOOR, GENERATED, IDEAL, score_generation
from mdsc.evaluation.generation_space import ExpressionSpace
from mdsc.evaluation.generation_table import generation_table, table_rows, verdicts

GENES = 40
CHEAP = tuple(metric for metric in IDEAL if metric not in ("w2", "auc_logistic", "auc_boosting"))


def cells(number, seed, *, groups=2, factor=1.0):
    """Counts of two kinds of cells, so that genes are correlated."""
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(0).gamma(0.5, 3.0, (groups, GENES)) * factor
    mean = rates[rng.integers(groups, size=number)] * rng.gamma(8, 1 / 8, (number, 1))
    return sp.csr_matrix(rng.poisson(mean).astype(np.int32))


def emptied(counts, rows):
    dense = counts.toarray()
    dense[list(rows)] = 0
    return sp.csr_matrix(dense)


def test_mmd_is_the_sum_of_its_definition():
    rng = np.random.default_rng(0)
    x, y, scale = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), 2.0

    def kernel(a, b):
        return np.mean([math.exp(-((a - b) ** 2).sum() / (factor * scale)) for factor in WIDTH_FACTORS])

    expected = (
        sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
        + sum(kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
        - 2 * sum(kernel(a, b) for a in x for b in y) / 20
    )
    assert mmd2(x, y, scale) == pytest.approx(expected, abs=1e-12)


def test_mmd_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(1)
    equal = np.array([mmd2(rng.normal(size=(20, 2)), rng.normal(size=(25, 2)), 4.0) for _ in range(300)])
    assert abs(equal.mean()) < 4 * equal.std() / math.sqrt(300)
    assert (equal < 0).mean() > 0.2
    assert mmd2(rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 1, 4.0) > 5 * equal.std()


def test_the_scale_is_the_median_squared_distance():
    assert squared_median(np.array([[0.0], [1.0], [3.0]])) == 4  # of 1, 4 and 9


@pytest.mark.skipif(not has_pot(), reason="POT is not installed")
def test_wasserstein_of_a_shift_is_its_length_and_that_of_samples_the_best_assignment():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 3))
    assert wasserstein2(x, x[::-1] + np.array([3.0, 0.0, 4.0])) == pytest.approx(5.0)
    y = rng.normal(size=(60, 3)) * 2
    squared = cdist(x, y, "sqeuclidean")
    assert wasserstein2(x, y) == pytest.approx(math.sqrt(squared[linear_sum_assignment(squared)].mean()))
    # Gaussians N(0, 1) and N(2, 3^2) in one dimension: sqrt(2^2 + (3 - 1)^2).
    a, b = (loc + scale * rng.standard_normal((1500, 1)) for loc, scale in ((0, 1), (2, 3)))
    assert wasserstein2(a, b) == pytest.approx(math.sqrt(8), rel=0.06)
    assert wasserstein2(x[:7], x[:3]) > 0


def test_without_pot_the_words_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    assert not has_pot()
    with pytest.raises(UserError, match=r"pip install \"mdsc\[eval\]\""):
        wasserstein2(np.zeros((2, 1)), np.zeros((2, 1)))
    result = score_generation(cells(60, 1), cells(30, 2), cells(60, 3), repeats=1, metrics=("w2", "mean_error"))
    assert result.to_json()["model"].keys() == {"mean_error", "standard_deviation"}


@pytest.mark.parametrize("kind", ["logistic", "boosting"])
def test_a_classifier_is_at_chance_for_one_law_and_sure_of_two(kind):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 150, 4))
    assert classifier_auc(x, y, kind) == pytest.approx(0.5, abs=0.1)
    assert classifier_auc(x, y + 2, kind) > 0.97
    # A law that differs in spread alone: trees see it, a straight line does not.
    assert (classifier_auc(x, 4 * y, kind) > 0.9) == (kind == "boosting")


def test_nearest_and_chances_by_hand():
    assert nearest_distance(np.array([[0.0], [5.0]]), np.array([[1.0], [7.0]])).tolist() == [1, 2]
    a, b = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0])
    assert chance_of_less(a, b) == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 0) / 6)
    assert chance_of_less(a, a) == 0.5


def test_moments_of_genes_by_hand():
    dense = np.array([[0, 1, 4], [0, 3, 0], [0, 2, 2]])
    moments = gene_moments(sp.csr_matrix(dense))
    np.testing.assert_allclose(moments["mean"], np.log1p([0, 2, 2]))
    np.testing.assert_allclose(moments["variance"], np.log1p(dense.var(axis=0)))
    np.testing.assert_allclose(moments["zero_rate"], [1, 0, 1 / 3])


def test_fits_are_perfect_for_the_same_cells_and_those_of_numpy_for_others():
    same, other = cells(80, 1), cells(70, 2, factor=2.0)
    for name, value in gene_fits(same, same).items():
        assert value == pytest.approx(0 if name.endswith("error") else 1, abs=1e-9), name
    found = gene_fits(other, same)
    ours, true = gene_moments(other)["mean"], gene_moments(same)["mean"]
    assert found["mean_pearson"] == pytest.approx(np.corrcoef(ours, true)[0, 1])
    assert found["mean_spearman"] == pytest.approx(np.corrcoef(rankdata(ours), rankdata(true))[0, 1])
    assert found["mean_slope"] == pytest.approx(np.polyfit(true, ours, 1)[0])
    assert found["mean_error"] == pytest.approx(np.abs(ours - true).mean())
    assert depth_fits(same, same) == {"depth_distance": 0, "depth_ratio": 1}
    assert depth_fits(other, same)["depth_ratio"] == pytest.approx(2, rel=0.15)


def test_correlations_are_seen():
    rng = np.random.default_rng(4)
    common = rng.normal(size=(400, 1))
    real = common + 0.7 * rng.normal(size=(400, 6))
    free = rng.normal(size=(400, 6))
    assert correlation_fits(real, real) == pytest.approx({"correlation_error": 0, "correlation_pearson": 1})
    expected = np.abs(np.corrcoef(free, rowvar=False) - np.corrcoef(real, rowvar=False))[np.triu_indices(6, 1)].mean()
    assert correlation_fits(free, real)["correlation_error"] == pytest.approx(expected)
    constant = np.ones((400, 6))
    assert all(np.isnan(value) for value in correlation_fits(constant, real).values())


def test_constants_have_no_correlation_and_no_slope():
    line, flat = np.arange(5.0), np.full(5, 0.1)
    assert np.isnan(pearson(line, flat))
    assert np.isnan(slope(line, flat))
    assert slope(flat, line) == pytest.approx(0)


def test_space_is_fitted_on_training_cells_and_keeps_empty_cells():
    counts = emptied(cells(50, 5), [3])
    space = ExpressionSpace.fit(counts, num_components=4)
    points = space.project(counts)
    assert points.shape == (50, 4)
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-8)
    assert (np.diff(points.var(axis=0)) <= 1e-9).all()
    dense = counts.toarray()
    np.testing.assert_allclose(log_normalised(counts, 100.0)[7].toarray()[0], np.log1p(dense[7] / dense[7].sum() * 100))
    # A cell of twice the depth is at the same place.
    np.testing.assert_allclose(space.project(counts[:2] * 2), points[:2], atol=1e-9)


@pytest.mark.parametrize("counts", [np.zeros((50, 12)), np.ones((60, 12)), np.arange(5)[:, None], np.ones((1, 9))])
def test_cells_that_span_no_space_are_told(counts):
    with pytest.raises(UserError, match="too few, or all alike"):
        ExpressionSpace.fit(sp.csr_matrix(counts))


@pytest.mark.parametrize("make", BASELINES.values(), ids=BASELINES)
def test_baselines_have_the_means_of_the_training_cells(make):
    train, rng = cells(500, 6), np.random.default_rng(7)
    made = make(train, 2000, rng)
    assert made.shape == (2000, GENES)
    mean = np.asarray(train.mean(axis=0)).ravel()
    error = np.sqrt(train.toarray().var(axis=0) * (1 / 2000 + 1e-4))
    assert (np.abs(np.asarray(made.mean(axis=0)).ravel() - mean) < 5 * error + 0.02).all()


def test_baselines_are_what_they_say():
    train, rng = cells(300, 8), np.random.default_rng(9)
    rows = {row.tobytes() for row in train.toarray()}
    assert all(row.tobytes() in rows for row in training_cells(train, 700, rng).toarray())
    assert len({row.tobytes() for row in training_cells(train, 300, rng).toarray()}) == len(rows)
    dense, free = train.toarray(), independent_genes(train, 4000, rng).toarray()
    assert all(set(free[:, gene]) <= set(dense[:, gene]) for gene in range(GENES))
    real_correlation, own = (
        np.abs(np.corrcoef(values[:, :8], rowvar=False) - np.eye(8)).mean() for values in (dense, free)
    )
    assert own < 0.03 < real_correlation
    # Variance over that of a Poisson law, from the shape: two kinds of cells make most genes overdispersed.
    drawn = negative_binomial(train, 4000, rng).toarray()
    ratio = drawn.var(axis=0) / np.maximum(dense.var(axis=0), 1e-9)
    assert np.median(ratio) == pytest.approx(1, abs=0.15)
    poisson = sp.csr_matrix(np.random.default_rng(1).poisson(2.0, (400, GENES)).astype(np.int32))
    drawn = negative_binomial(poisson, 4000, rng).toarray()
    assert drawn.var(axis=0).mean() == pytest.approx(2.0, abs=0.15)


@pytest.fixture(scope="module")
def same_law():
    return score_generation(cells(200, 11), cells(100, 12), cells(200, 13), repeats=3, metrics=CHEAP)


def test_cells_of_the_same_law_are_at_the_floor_and_others_are_not(same_law):
    for metric in ("mmd2", "mean_error", "zero_rate_error", "correlation_error", "depth_distance"):
        noise = 5 * same_law.deviation(FLOOR, metric) + 1e-3
        assert same_law.distance(GENERATED, metric) < same_law.distance(FLOOR, metric) + noise, metric
    assert same_law.mean(FLOOR, "nearer_to_training") == pytest.approx(0.5, abs=0.1)
    assert same_law.mean("training_cells", "nearer_to_training") == 1
    assert same_law.mean("training_cells", "copies") == 1
    assert same_law.mean("independent_genes", "mmd2") > 10 * same_law.distance(FLOOR, "mmd2")
    assert same_law.cells == 100
    assert [verdict.kind for verdict in verdicts(same_law)] == ["good", "good"]
    wrong = score_generation(cells(200, 11), cells(100, 12, factor=3.0), cells(200, 13), repeats=1, metrics=CHEAP)
    assert wrong.distance(GENERATED, "mean_error") > 5 * wrong.distance(FLOOR, "mean_error")
    assert wrong.mean(GENERATED, "depth_ratio") == pytest.approx(3, rel=0.2)


def test_baselines_are_of_cells_that_the_space_has_not_seen():
    """Components fit their own cells too well: trees would tell the copied training cells from fresh ones."""
    rng = np.random.default_rng(4)
    counts = sp.csr_matrix(rng.poisson(0.7, (600, 300)).astype(np.int32))
    real, generated, train = counts[:240], counts[240:360], counts[360:]
    found = score_generation(real, generated, train, repeats=1, metrics=("auc_boosting", "copies"))
    assert found.mean("training_cells", "copies") == 1
    assert found.mean("training_cells", "auc_boosting") == pytest.approx(0.5, abs=0.15)


def test_copied_training_cells_are_called_so():
    train = cells(200, 13)
    result = score_generation(cells(100, 11), train[:60], train, repeats=1, metrics=CHEAP)
    assert result.mean(GENERATED, "copies") == 1
    assert "ARE training cells" in verdicts(result)[-1].text


def test_a_model_that_a_baseline_beats_is_said_to_be_beaten():
    result = score_generation(cells(200, 11), cells(100, 12, groups=1), cells(200, 13), repeats=1, metrics=CHEAP)
    assert "NOT beaten" in verdicts(result)[0].text


def test_constants_are_null_in_the_json_and_na_in_the_table():
    same = sp.csr_matrix(np.tile(np.arange(GENES, dtype=np.int32) % 3, (60, 1)))
    result = score_generation(cells(60, 1), same, cells(60, 3), repeats=1, metrics=CHEAP)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["model"]["variance_slope"] == pytest.approx(0)
    assert found["model"]["variance_pearson"] is None
    assert found["model"]["correlation_error"] is None
    assert found["model"]["standard_deviation"]["mmd2"] is None  # of one cut
    assert found.keys() == {"model", "floor", "baselines", "cells_compared"}
    assert next(row for row in table_rows(result) if row[0] == "variance_pearson")[2] == "n/a"


def test_the_table_is_whole_in_a_pipe(same_law, capsys):
    plain_console().print(generation_table(same_law), soft_wrap=False)
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {" ".join(row) for row in table_rows(same_law)} <= lines


def test_cells_without_counts_are_scored_and_are_no_copies():
    generated, train = (emptied(cells(60, seed), range(10)) for seed in (2, 3))
    result = score_generation(cells(60, 1), generated, train, repeats=1, metrics=CHEAP)
    assert result.mean(GENERATED, "copies") == 0
    assert np.isfinite(result.mean(GENERATED, "mmd2"))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        pytest.param((30, 30, 60), "--real has 30 cells", id="real"),
        pytest.param((60, 10, 60), "--generated has 10 cells", id="generated"),
        pytest.param((60, 30, 39), "--train has 39 cells", id="train"),
    ],
)
def test_few_cells_are_told(sizes, words):
    with pytest.raises(UserError, match=words):
        score_generation(*(cells(number, seed) for seed, number in enumerate(sizes)), repeats=1)


def test_the_target_of_a_cut_is_projected_once(monkeypatch):
    projected, project = [], ExpressionSpace.project
    monkeypatch.setattr(
        ExpressionSpace, "project", lambda space, counts: projected.append(counts.shape[0]) or project(space, counts)
    )
    score_generation(cells(60, 1), cells(40, 2), cells(80, 3), repeats=2, metrics=CHEAP)
    candidates = 2 + len(BASELINES)
    assert projected == [80] + 2 * (candidates + 1) * [30]


def test_half_b_is_the_same_for_all_rows_and_no_part_of_a(monkeypatch):
    seen = []

    def spy(candidate, target, metrics, seed):
        seen.append((candidate.counts, target.counts))
        return dict.fromkeys(metrics, 0.0)

    monkeypatch.setattr(generation_scores, "_compare", spy)
    real = sp.csr_matrix(np.arange(1, 61, dtype=np.int32)[:, None] * np.eye(1, 5, dtype=np.int32))
    score_generation(real, cells(40, 2)[:, :5], cells(60, 3)[:, :5], repeats=1, metrics=("mmd2",))
    targets = {target.toarray().tobytes() for _, target in seen}
    assert len(targets) == 1
    assert {candidate.shape[0] for candidate, _ in seen} == {30}
    b, a = seen[0][1].toarray()[:, 0], seen[1][0].toarray()[:, 0]
    assert set(a) | set(b) == set(range(1, 61))
