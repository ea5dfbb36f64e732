"""Metrics over hidden positions against plain loops written from their definitions."""

import math

import numpy as np
import pytest

from mdsc.evaluation.metrics import CellScores, crps_of, expression_deciles, nll_difference, score_cells, score_points

CELLS, GENES, V = 7, 40, 6


def example(seed=0, ratio=0.6):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(CELLS, GENES, V)) * 2
    log_p = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    counts = rng.poisson(rng.gamma(1.0, 1.5, GENES), (CELLS, GENES)).astype(np.int32)
    tokens = np.minimum(counts, V - 1)
    hidden = rng.random((CELLS, GENES)) < ratio
    # Each cell has its own counts for the tokens, two of them equal, and not all true counts are among them.
    table = np.sort(rng.gamma(2.0, 2.0, (CELLS, V)), axis=1)
    table[:, 0], table[:, 3] = 0, table[:, 2]
    return log_p, tokens, counts, hidden, table, expression_deciles(counts.mean(0))


def ranks(values):
    """Average ranks, by counting."""
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def pearson(a, b):
    a, b = np.array(a) - np.mean(a), np.array(b) - np.mean(b)
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def brute_force(log_p, tokens, counts, hidden, table, deciles):
    rows = {name: [] for name in ("nll", "accuracy", "accuracy_nonzero", "mae_log1p", "mae_log1p_median", "crps")}
    gaps, spearmans = [[] for _ in range(10)], []
    for i in range(CELLS):
        means, truths = [], []
        for g in range(GENES):
            if not hidden[i, g]:
                continue
            p, x = [math.exp(v) for v in log_p[i, g]], int(counts[i, g])
            mean = sum(p[t] * table[i, t] for t in range(V))
            right = float(np.argmax(p) == tokens[i, g])
            rows["nll"].append(-math.log(p[tokens[i, g]]))
            rows["accuracy"].append(right)
            rows["mae_log1p"].append(abs(math.log1p(mean) - math.log1p(x)))
            median = next(table[i, t] for t in range(V) if sum(p[: t + 1]) >= 0.5)
            rows["mae_log1p_median"].append(abs(math.log1p(median) - math.log1p(x)))
            v, y = [math.log1p(c) for c in table[i]], math.log1p(x)
            spread = sum(p[a] * p[b] * abs(v[a] - v[b]) for a in range(V) for b in range(V))
            rows["crps"].append(sum(p[a] * abs(v[a] - y) for a in range(V)) - spread / 2)
            gaps[deciles[g]].append(p[0] - (x == 0))
            if x > 0:
                rows["accuracy_nonzero"].append(right)
                means.append(mean)
                truths.append(x)
        if len(set(truths)) > 1 and len(truths) >= 3:
            spearmans.append(pearson(ranks(means), ranks(truths)))
    result = {name: float(np.mean(values)) for name, values in rows.items()}
    result["spearman_nonzero"] = float(np.mean(spearmans))
    result["zero_rate_error"] = abs(float(np.mean([gap for group in gaps for gap in group])))
    result["zero_rate_error_max_decile"] = max(abs(float(np.mean(group))) for group in gaps if group)
    return result


@pytest.mark.parametrize("ratio", [pytest.param(0.2, id="20%"), pytest.param(0.8, id="80%"), pytest.param(1, id="all")])
def test_metrics_equal_the_loops(ratio):
    arguments = example(ratio=ratio)
    metrics, expected = score_cells(*arguments).metrics(), brute_force(*arguments)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=2e-6), name


def test_a_point_is_scored_as_the_mean_of_a_law_is_and_nothing_else():
    log_p, tokens, counts, hidden, table, deciles = example()
    law = score_cells(log_p, tokens, counts, hidden, table, deciles)
    means = np.einsum("cgv,cv->cg", np.exp(log_p.astype(np.float64)), table).astype(np.float32)
    point, law = score_points(means, counts, hidden, deciles).metrics(), law.metrics()
    assert point["mae_log1p"] == pytest.approx(law["mae_log1p"], abs=1e-6)
    assert point["mae_log1p_median"] == point["mae_log1p"]
    assert point["spearman_nonzero"] == pytest.approx(law["spearman_nonzero"], abs=1e-6)
    known = {"mae_log1p", "mae_log1p_median", "spearman_nonzero"}
    assert {name for name, value in point.items() if not math.isnan(value)} == known
    assert point.keys() == law.keys()


def test_crps_is_the_integral_over_thresholds():
    rng = np.random.default_rng(1)
    p, v = rng.dirichlet(np.ones(V), size=3), np.sort(rng.random(V))
    y = np.array([-0.3, v[2], 1.4])  # below all points, at one, above all
    z = (np.arange(400_000) + 0.5) * 2.4 / 400_000 - 0.7
    for row in range(3):
        law = np.concatenate([[0], p[row].cumsum()])[np.searchsorted(v, z, side="right")]
        integral = ((law - (z >= y[row])) ** 2).mean() * 2.4
        assert crps_of(p, v, y)[row] == pytest.approx(integral, abs=2e-5)


def test_batches_and_repeats_add_up():
    log_p, tokens, counts, hidden, table, deciles = example()
    whole = score_cells(log_p, tokens, counts, hidden, table, deciles)
    parts = [
        score_cells(log_p[rows], tokens[rows], counts[rows], hidden[rows], table[rows], deciles)
        for rows in (slice(0, 2), slice(2, 3), slice(3, CELLS))
    ]
    assert CellScores.concatenated(parts).metrics() == pytest.approx(whole.metrics())
    other = score_cells(log_p, tokens, counts, ~hidden, table, deciles)
    everything = score_cells(log_p, tokens, counts, np.ones_like(hidden), table, deciles)
    assert (whole + other).metrics()["nll"] == pytest.approx(everything.metrics()["nll"])
    assert (whole + other).metrics()["crps"] == pytest.approx(everything.metrics()["crps"])


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.8, 0.95])
def test_a_constant_predictor_scores_the_base_rate_at_every_mask_ratio(ratio):
    """Visible positions that are counted as right, as the parent's were, would raise it to .72 at 5% hidden."""
    rng = np.random.default_rng(2)
    cells, genes = 60, 400
    base = np.array([0.7, 0.2, 0.1])
    counts = rng.choice(3, p=base, size=(cells, genes)).astype(np.int32)
    hidden = rng.random((cells, genes)) < ratio
    log_p = np.broadcast_to(np.log(base).astype(np.float32), (cells, genes, 3))
    table = np.broadcast_to(np.arange(3.0), (cells, 3))
    metrics = score_cells(log_p, counts, counts, hidden, table, expression_deciles(counts.mean(0))).metrics()
    noise = 4 * 0.7 / math.sqrt(ratio * cells * genes)
    assert metrics["accuracy"] == pytest.approx(0.7, abs=noise)
    assert metrics["nll"] == pytest.approx(-(base * np.log(base)).sum(), abs=noise)
    assert metrics["zero_rate_error"] < noise
    assert metrics["accuracy_nonzero"] == 0
    assert metrics["spearman_nonzero"] == 0


def test_visible_positions_do_not_count():
    log_p, tokens, counts, hidden, table, deciles = example()
    before = score_cells(log_p, tokens, counts, hidden, table, deciles).metrics()
    nonsense = np.where(hidden[..., None], log_p, np.float32(-50))
    after = score_cells(nonsense, tokens, np.where(hidden, counts, 99), hidden, table, deciles).metrics()
    assert before == after


def test_standard_errors_are_those_of_cells():
    """Cells that differ, positions within a cell that do not: the error shrinks with cells and not with genes."""
    rng = np.random.default_rng(3)
    cells, genes = 200, 30
    level = rng.uniform(0.2, 0.8, (cells, 1, 1))
    log_p = np.log(np.concatenate([level, 1 - level], axis=2)).repeat(genes, 1).astype(np.float32)
    zeros = np.zeros((cells, genes), dtype=np.int32)
    table = np.tile(np.arange(2.0), (cells, 1))
    scores = score_cells(log_p, zeros, zeros, zeros == 0, table, expression_deciles(np.zeros(genes)))
    expected = float(np.log(level).std() / math.sqrt(cells))
    assert scores.standard_errors["nll"] == pytest.approx(expected, rel=0.15)
    shifted = score_cells(log_p - np.float32(0.1), zeros, zeros, zeros == 0, table, expression_deciles(np.zeros(genes)))
    difference, error = nll_difference(shifted, scores)
    assert difference == pytest.approx(0.1, abs=1e-6)
    assert error < 1e-6  # paired: what cells have in common cancels


def test_deciles_are_equal_and_ordered():
    mean = np.random.default_rng(4).random(95)
    deciles = expression_deciles(mean)
    assert np.bincount(deciles).min() >= 9
    assert all(mean[deciles == d].max() < mean[deciles == d + 1].min() for d in range(9))
