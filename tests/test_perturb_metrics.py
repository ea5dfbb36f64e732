"""Metrics of perturbation on arrays small enough to compute by hand, and estimators whose mean is known."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ttest_ind

from mdsc.evaluation.perturb_distances import e_distance
from mdsc.evaluation.perturb_metrics import (
    Moments,
    UnitTruth,
    benjamini_hochberg,
    de_overlap,
    discrimination,
    effect_metrics,
    pearson,
    welch,
)


def truth(delta, t=None, targets=(), significant=()) -> UnitTruth:
    delta = np.array(delta, dtype=float)
    flags = [np.isin(np.arange(len(delta)), list(places)) for places in (significant, targets)]
    return UnitTruth(delta, delta.copy() if t is None else np.array(t, dtype=float), *flags)


def test_effect_metrics_by_hand():
    found = effect_metrics(
        truth([1.0, 2.0, 3.0, 4.0], t=[1.0, 0.0, 0.0, -3.0]), np.array([2.0, 2.0, 5.0, 3.0]), np.array([1.0, 1, 1, 0])
    )
    # Deviations -1.5 -.5 .5 1.5 and -1 -1 2 0: 1.5 + .5 + 1 over sqrt(5 * 6).
    assert found["pearson_delta"] == pytest.approx(3 / np.sqrt(30))
    # Less the shift 0 1 2 4 and 1 1 4 3, means 1.75 and 2.25.
    a, b = np.array([-1.75, -0.75, 0.25, 2.25]), np.array([-1.25, -1.25, 1.75, 0.75])
    assert found["pearson_delta_pert"] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    assert found["mse"] == pytest.approx((1 + 0 + 4 + 1) / 4)
    assert found["mae"] == pytest.approx(1.0)
    assert found["mse_de"] == pytest.approx((1 * 1 + 3 * 1) / 4)


def test_top_genes_are_those_of_greatest_t_with_and_without_the_target():
    rng = np.random.default_rng(0)
    delta, t = rng.normal(size=50), rng.normal(size=50)
    target = int(np.argmax(np.abs(t)))
    predicted = rng.normal(size=50)
    found = effect_metrics(truth(delta, t, targets=[target]), predicted, np.zeros(50))
    order = np.argsort(-np.abs(t))
    assert found["delta20"] == pytest.approx(np.corrcoef(delta[order[:20]], predicted[order[:20]])[0, 1])
    assert found["delta20_no_target"] == pytest.approx(np.corrcoef(delta[order[1:21]], predicted[order[1:21]])[0, 1])


def test_a_correlation_with_something_constant_is_not_defined():
    effect = np.array([1.0, -1.0, 2.0])
    assert pearson(effect, np.zeros(3)) is None
    assert pearson(effect, np.full(3, 0.7)) is None
    assert pearson(effect, 1e-8 * effect) is None, "the rounding of single precision is no prediction"
    assert pearson(effect, 1e-3 * effect) == pytest.approx(1.0)
    assert pearson(effect[:2], effect[:2]) is None, "two points are always on a line"
    found = effect_metrics(truth(effect), np.array([0.5, 1.0, 0.0]), np.zeros(3), same_for_all=True)
    assert found["pearson_delta_pert"] is None
    assert found["pearson_delta"] is not None
    nothing = effect_metrics(truth(effect), np.zeros(3), np.array([0.5, 1.0, 0.0]))
    assert nothing["pearson_delta_pert"] is None, "the shift reversed is nobody's prediction"
    assert effect_metrics(truth(effect, t=[0, 0, 0]), effect, np.zeros(3))["mse_de"] is None


def test_discrimination_by_hand():
    truths = [truth([0.0, 0.0, 5.0]), truth([1.0, 0.0, 0.0]), truth([3.0, 3.0, 0.0]), truth([0.0, 2.0, 0.0])]
    nothing = np.zeros(3, dtype=bool)
    predicted = np.array([1.0, 1.0, 0.0])
    # L1 distances 7, 1, 4, 2.
    assert discrimination(truths, predicted, 1, "l1", nothing) == 1.0
    assert discrimination(truths, predicted, 3, "l1", nothing) == 0.75
    assert discrimination(truths, predicted, 0, "l1", nothing) == 0.25
    # Without the last gene the first is at distance 2, as the last is: half a rank.
    without = np.array([False, False, True])
    assert discrimination(truths, predicted, 3, "l1", without) == pytest.approx(1 - 1.5 / 4)
    # The angle is least with the third, whatever its length.
    assert discrimination(truths, predicted, 2, "cosine", nothing) == 1.0
    assert discrimination(truths, predicted, 2, "l1", nothing) == 0.5
    assert discrimination(truths, np.zeros(3), 2, "cosine", nothing) is None
    assert discrimination(truths[:1], predicted, 0, "l1", nothing) is None


@pytest.mark.parametrize("kind", ["l1", "cosine"])
def test_the_chance_level_of_discrimination(kind):
    """(N + 1) / 2N: one prediction for all has it exactly, over the ranks; random ones in the mean."""
    rng = np.random.default_rng(1)
    number, nothing = 21, np.zeros(30, dtype=bool)
    truths = [truth(rng.normal(size=30)) for _ in range(number)]
    constant = rng.normal(size=30)
    same = [discrimination(truths, constant, own, kind, nothing) for own in range(number)]
    assert np.mean(same) == pytest.approx((number + 1) / (2 * number))
    values = [discrimination(truths, rng.normal(size=30), n % number, kind, nothing) for n in range(40 * number)]
    error = np.std(values) / np.sqrt(len(values))
    assert np.mean(values) == pytest.approx(0.5238, abs=4 * error)


def test_welch_is_scipys_for_dense_and_sparse_cells():
    rng = np.random.default_rng(2)
    x, y = (rng.poisson(0.8, (n, 12)).astype(np.float32) for n in (25, 60))
    x[:, 3] = y[:, 3] = 0
    with np.errstate(all="ignore"):
        expected = ttest_ind(x[:, :3].astype(float), y[:, :3].astype(float), equal_var=False)
    for first, second in ((x, y), (sp.csr_matrix(x), sp.csr_matrix(y))):
        t, p = welch(Moments.of(first), Moments.of(second))
        np.testing.assert_allclose(t[:3], expected.statistic, rtol=1e-6)
        np.testing.assert_allclose(p[:3], expected.pvalue, rtol=1e-6)
        assert (t[3], p[3]) == (0.0, 1.0)


def test_benjamini_hochberg_by_hand():
    # Thresholds .0125 .025 .0375 .05: the third is a discovery for the sake of the fourth.
    assert benjamini_hochberg(np.array([0.05, 0.001, 0.045, 0.04])).tolist() == [True, True, True, True]
    assert benjamini_hochberg(np.array([0.06, 0.001, 0.045, 0.04])).tolist() == [False, True, False, False]
    assert not benjamini_hochberg(np.array([0.5, 0.2])).any()


def test_de_overlap_takes_the_largest_changes():
    control = Moments(np.zeros(6), np.full(6, 1e-4), 100)
    predicted = Moments(np.array([5.0, 4.0, 3.0, 0.1, 0.0, 0.0]), np.full(6, 1e-4), 100)
    # Four genes are significant in the prediction; of the two largest one is right.
    assert de_overlap(truth(np.zeros(6), significant=[0, 3]), predicted, control) == 0.5
    assert de_overlap(truth(np.zeros(6), significant=[0, 1, 2, 3]), predicted, control) == 1.0
    assert de_overlap(truth(np.zeros(6), significant=[5]), control, control) == 0.0
    assert de_overlap(truth(np.zeros(6)), predicted, control) is None


def test_e_distance_by_hand_and_without_bias():
    x, y = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    between = (0 + 1 + 2 + 5 + np.hypot(3, 3) + np.hypot(3, 2)) / 6
    assert e_distance(x, y) == pytest.approx(2 * between - 5 - 4 / 3)
    rng = np.random.default_rng(3)
    equal = [e_distance(*rng.normal(size=(2, 6, 4))) for _ in range(600)]
    assert np.mean(equal) == pytest.approx(0, abs=4 * np.std(equal) / np.sqrt(600))
    apart = [e_distance(rng.normal(size=(6, 4)), 1 + rng.normal(size=(6, 4))) for _ in range(100)]
    assert np.mean(apart) > 0.8
