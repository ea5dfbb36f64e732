"""PIT and coverage: exact where the laws are known, and off where these are wrong."""

import numpy as np
import pytest
import torch
from exact_joint import ExactJoint
from scipy.stats import nbinom, poisson

from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import hide
from mdsc.diffusion.losses import log_probs
from mdsc.evaluation.calibration import GROUPS, PIT_BINS, Calibration, calibration_of, pit_mass
from mdsc.evaluation.metrics import expression_deciles, score_cells

ALL, EXPECTED = GROUPS


def metrics_of(p, counts, values=None, cell=None) -> dict:
    """Metrics of laws p (positions, V) on `values` (0, 1, 2, ...)."""
    values = np.arange(p.shape[1], dtype=np.float64) if values is None else values
    cell = np.zeros(len(p), dtype=np.int64) if cell is None else cell
    table = np.broadcast_to(values, (cell.max() + 1, len(values))).copy()
    found = calibration_of(p, cell, counts, table, p @ values)
    weighted = found.weighted(np.ones((1, cell.max() + 1)))
    return {group: {name: value[0] for name, value in of_group.items()} for group, of_group in weighted.items()}


def laws_and_draws(number=20_000, seed=0):
    """Poisson laws of many means, cut at 40, and a draw of each: most counts are 0."""
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.3, 2.0, number)
    p = poisson.pmf(np.arange(41), means[:, None])
    p[:, -1] += 1 - p.sum(axis=1)
    return means, p, np.minimum(rng.poisson(means), 40)


def test_one_position_by_hand():
    """p = (.5, .3, .2), x = 1: mass 1 spread over [.5, .8]."""
    p, expected = np.array([[0.5, 0.3, 0.2]]), np.zeros(PIT_BINS)
    expected[10:16] = 1 / 6
    found = metrics_of(p, np.array([1]))[ALL]
    np.testing.assert_allclose(found["pit"], expected, atol=1e-12)
    assert found["coverage_50"] == pytest.approx(5 / 6)
    assert found["coverage_90"] == pytest.approx(1)
    # Quantiles at .25 and .75 are 0 and 1, which have .8; those at .05 and .95 are 0 and 2.
    assert found["interval_50_coverage"] == 1
    assert found["interval_50_claimed"] == pytest.approx(0.8)
    assert found["interval_50_width"] == 1
    assert found["interval_90_claimed"] == pytest.approx(1)
    assert found["interval_90_width"] == 2
    assert metrics_of(p, np.array([2]))[ALL]["interval_50_coverage"] == 0


def test_tokens_of_one_count_are_one_and_counts_between_tokens_are_points():
    values = np.array([0.0, 0.4, 1.3, 4.0])  # as whole counts: 0, 1, 1, 4
    p = np.array([[0.4, 0.1, 0.2, 0.3]])
    np.testing.assert_allclose(metrics_of(p, np.array([1]), values)[ALL]["pit"][8:14], 1 / 6, atol=1e-9)
    between = metrics_of(p, np.array([2]), values)[ALL]["pit"]  # F(1) = F(2) = .7
    assert between[13:15].sum() == pytest.approx(1)
    assert metrics_of(p, np.array([9]), values)[ALL]["pit"][-1] == pytest.approx(1)


def test_right_laws_are_uniform_and_cover_what_they_should():
    means, p, counts = laws_and_draws()
    assert (counts == 0).mean() > 0.6
    found = metrics_of(p, counts)
    for group, positions in ((ALL, len(means)), (EXPECTED, (means >= 1).sum())):
        # The mass in a range is a mean of values in [0, 1].
        noise = 4 * 0.5 / np.sqrt(positions)
        assert found[group]["positions"] == pytest.approx(positions, abs=3)
        np.testing.assert_allclose(found[group]["pit"], 1 / PIT_BINS, atol=noise)
        assert found[group]["coverage_50"] == pytest.approx(0.5, abs=noise)
        assert found[group]["coverage_90"] == pytest.approx(0.9, abs=noise)
        assert found[group]["pit_error"] < noise
        for level in (50, 90):
            claimed = found[group][f"interval_{level}_claimed"]
            assert claimed > level / 100
            assert found[group][f"interval_{level}_coverage"] == pytest.approx(claimed, abs=noise)
    # Plain intervals of counts hold far more than they are named for.
    assert found[ALL]["interval_50_claimed"] > 0.75


@pytest.mark.parametrize(
    ("factor", "shape", "change"),
    [
        pytest.param(1.5, None, "pit_error", id="means-too-high"),
        pytest.param(1.0, 1.0, "wide", id="laws-too-wide"),
    ],
)
def test_wrong_laws_are_seen(factor, shape, change):
    means, _, counts = laws_and_draws()
    means, counts, grid = means[:4000], counts[:4000], np.arange(120)
    if shape is None:
        wrong = poisson.pmf(grid, factor * means[:, None])
    else:
        wrong = nbinom.pmf(grid, shape, shape / (shape + means[:, None]))
    wrong /= wrong.sum(axis=1, keepdims=True)
    found = metrics_of(wrong, counts)[EXPECTED]
    assert found["pit_error"] > 0.1
    assert change != "wide" or found["coverage_50"] > 0.6


def test_laws_that_are_too_narrow_cover_too_little():
    rng = np.random.default_rng(3)
    means = rng.gamma(2.0, 2.0, 3000)
    counts = rng.negative_binomial(1.0, 1 / (1 + means))
    p = poisson.pmf(np.arange(200), means[:, None])
    found = metrics_of(p / p.sum(axis=1, keepdims=True), counts)[EXPECTED]
    assert found["coverage_90"] < 0.75
    assert found["interval_90_coverage"] < found["interval_90_claimed"] - 0.1


def test_exact_conditionals_of_a_joint_law_are_calibrated_and_others_are_not():
    """Through hiding, tokens and logits, as the harness goes."""
    joint, number = ExactJoint(4, seed=1), 1500
    rows = torch.multinomial(joint.p, number, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = joint.batch(joint.cells[rows])
    hidden = hide_fraction(batch.is_pad, 0.6, seed=0, cell_index=batch.cell_index)
    evidence = hide(batch, hidden)
    table = joint.tokenizer.decode_table(evidence.counts, evidence.visible).numpy()
    right = log_probs(evidence.predict(joint.predict, joint.tokenizer)).float().numpy()
    marginal = torch.stack([torch.bincount(c, minlength=3) for c in joint.cells[rows].T]).float() / number
    other_gene = torch.log(marginal.roll(1, 0)).expand(right.shape).numpy()
    counts, deciles = batch.counts.numpy(), expression_deciles(np.arange(4.0))

    def pit_error(log_p):
        scores = score_cells(log_p, batch.tokens.numpy(), counts, hidden.numpy(), table, deciles)
        values, errors = scores.calibration_metrics
        return values[ALL], errors[ALL]

    found, errors = pit_error(right)
    assert abs(found["coverage_90"] - 0.9) < 4 * errors["coverage_90"] < 0.04
    assert abs(found["coverage_50"] - 0.5) < 4 * errors["coverage_50"] < 0.06
    assert found["pit_error"] < 0.02
    assert pit_error(other_gene)[0]["pit_error"] > 0.02


def test_a_predictor_that_expects_little_everywhere_has_no_second_group():
    p = np.tile([0.9, 0.1], (6, 1))
    found = metrics_of(p, np.array([0, 0, 1, 0, 0, 0]))
    assert found[EXPECTED]["positions"] == 0
    assert np.isnan(found[EXPECTED]["coverage_90"])
    assert np.isfinite(found[ALL]["coverage_90"])


def test_sums_add_up_over_batches_and_hidings():
    _, p, counts = laws_and_draws(600)
    table, mean = np.broadcast_to(np.arange(41.0), (6, 41)).copy(), p @ np.arange(41.0)
    cell = np.repeat(np.arange(6), 100)
    whole = calibration_of(p, cell, counts, table, mean)
    parts = [
        calibration_of(p[s], cell[s] - a, counts[s], table[:n], mean[s])
        for s, a, n in ((slice(0, 200), 0, 2), (slice(200, 600), 2, 4))
    ]
    joined = Calibration.concatenated(parts)
    for name in ("positions", "pit", "covered", "claimed", "width"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name))
        np.testing.assert_allclose(getattr(whole + whole, name), 2 * getattr(whole, name))
    assert whole.pit.sum(axis=2) == pytest.approx(whole.positions)


def test_mass_is_kept_whatever_the_interval():
    below = np.array([0.0, 0.2, 1.0, 0.999, 0.5])
    up_to = np.array([0.0, 0.9, 1.0, 1.0, 0.5])
    mass = pit_mass(below, up_to)
    np.testing.assert_allclose(mass.sum(axis=1), 1)
    assert (mass >= 0).all()
