"""Metrics of one predicted effect: how near it is to the true one.

An effect (delta) is the mean log expression of perturbed cells less that of the REAL control cells of the same context.
What is not defined is None, never 0: a correlation with something constant, a rank among one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

HIGHER_IS_BETTER = {
    "pearson_delta": True,
    "pearson_delta_pert": True,
    "delta20": True,
    "delta20_no_target": True,
    "mse": False,
    "mae": False,
    "mse_de": False,
    "discrimination_l1": True,
    "discrimination_cosine": True,
    "de_overlap": True,
    "e_distance": False,
    "mmd2": False,
}
HEADLINES = ("pearson_delta", "pearson_delta_pert", "discrimination_l1", "e_distance", "mmd2")
CORRELATIONS = ("pearson_delta", "pearson_delta_pert", "delta20", "delta20_no_target")
TOP_GENES = 20
FALSE_DISCOVERY_RATE = 0.05
CONSTANT = 1e-6
"""Log expression. What varies less is constant: the rounding of single precision would correlate with anything."""

Effect = Float64[np.ndarray, " genes"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a set of cells, gene by gene."""

    mean: Float64[np.ndarray, " genes"]
    variance: Float64[np.ndarray, " genes"]
    """Unbiased."""
    cells: int

    @classmethod
    def of(cls, cells: sp.csr_matrix | np.ndarray) -> "Moments":
        number = cells.shape[0]
        if sp.issparse(cells):
            sums = [
                np.bincount(cells.indices, weights=cells.data.astype(np.float64) ** power, minlength=cells.shape[1])
                for power in (1, 2)
            ]
        else:
            sums = [cells.sum(axis=0, dtype=np.float64), np.einsum("ij,ij->j", cells, cells, dtype=np.float64)]
        mean = sums[0] / number
        spread = np.maximum(sums[1] / number - mean**2, 0.0)
        # What is left of equal values after subtraction is rounding.
        spread[spread < 1e-12 * (1 + mean**2)] = 0.0
        return cls(mean, spread * number / max(1, number - 1), number)


@dataclass(frozen=True, eq=False)
class UnitTruth:
    """What is known of the true effect of one unit."""

    delta: Effect
    t: Float64[np.ndarray, " genes"]
    """Welch's t of real perturbed cells against real controls; 0 where neither varies."""
    significant: Bool[np.ndarray, " genes"]
    is_target: Bool[np.ndarray, " genes"]
    """The perturbed genes themselves."""

    @classmethod
    def of(cls, perturbed: Moments, control: Moments, is_target: Bool[np.ndarray, " genes"]) -> "UnitTruth":
        t, p = welch(perturbed, control)
        return cls(perturbed.mean - control.mean, t, benjamini_hochberg(p), is_target)

    def top(self, number: int, without: Bool[np.ndarray, " genes"] | None = None) -> Int64[np.ndarray, " top"]:
        """Genes of greatest |t|, without some."""
        order = np.argsort(-np.abs(self.t), kind="stable")
        return (order if without is None else order[~without[order]])[:number]


def welch(x: Moments, y: Moments) -> tuple[Float64[np.ndarray, " genes"], Float64[np.ndarray, " genes"]]:
    """t and two-sided p of Welch's test, gene by gene; 0 and 1 where neither set varies."""
    from scipy.stats import ttest_ind_from_stats

    with np.errstate(divide="ignore", invalid="ignore"):
        t, p = ttest_ind_from_stats(
            x.mean, np.sqrt(x.variance), x.cells, y.mean, np.sqrt(y.variance), y.cells, equal_var=False
        )
    still = x.variance + y.variance == 0
    return np.where(still | np.isnan(t), 0.0, t), np.where(still | np.isnan(p), 1.0, p)


def benjamini_hochberg(
    p: Float64[np.ndarray, " genes"], rate: float = FALSE_DISCOVERY_RATE
) -> Bool[np.ndarray, " genes"]:
    """Which are discoveries at this false discovery rate (Benjamini & Hochberg 1995)."""
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), dtype=bool)
    found[order[: below[-1] + 1 if len(below) else 0]] = True
    return found


def pearson(x: Effect, y: Effect) -> float | None:
    """None where one of them is constant over genes, or where there are fewer than three genes."""
    if len(x) < 3 or min(x.std(), y.std()) < CONSTANT:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def effect_metrics(
    truth: UnitTruth, delta: Effect, shift: Effect, *, same_for_all: bool = False
) -> dict[str, float | None]:
    """Of a predicted effect `delta`. shift: mean effect of the training perturbations; PearsonDelta-pert correlates
    what is left of both effects without it. same_for_all: the method predicts one effect for all perturbations; what is
    left is then no property of any of them, and PearsonDelta-pert is not defined."""
    with_target, no_target = truth.top(TOP_GENES), truth.top(TOP_GENES, truth.is_target)
    error = delta - truth.delta
    weight = np.abs(truth.t)
    # Without any effect what is left is the shift, reversed: no property of the perturbation either.
    is_none = same_for_all or delta.std() < CONSTANT
    return {
        "pearson_delta": pearson(delta, truth.delta),
        "pearson_delta_pert": None if is_none else pearson(delta - shift, truth.delta - shift),
        "delta20": pearson(delta[with_target], truth.delta[with_target]),
        "delta20_no_target": pearson(delta[no_target], truth.delta[no_target]),
        "mse": float(np.square(error).mean()),
        "mae": float(np.abs(error).mean()),
        "mse_de": float(weight @ np.square(error) / weight.sum()) if weight.any() else None,
    }


def discrimination(
    truths: Sequence[UnitTruth], delta: Effect, own: int, kind: str, is_target: Bool[np.ndarray, " genes"]
) -> float | None:
    """1 - rank0 / N: how many of the N true effects are nearer to the predicted one than its own, ties by half.

    1: its own is the nearest. Chance is (N + 1) / 2N. The target gene is left out: it would tell all by itself. kind:
    "l1" or "cosine", which is not defined for an effect of 0. None for N = 1.
    """
    if len(truths) < 2:
        return None
    true = np.stack([truth.delta[~is_target] for truth in truths])
    effect = delta[~is_target]
    if kind == "l1":
        distances = np.abs(true - effect).sum(axis=1)
    else:
        if np.abs(effect).max(initial=0.0) < CONSTANT:
            return None
        distances = -(true @ effect) / np.maximum(np.linalg.norm(true, axis=1), 1e-12)
    nearer = (distances < distances[own]).sum()
    tied = (distances == distances[own]).sum() - 1
    return float(1 - (nearer + tied / 2) / len(truths))


def de_overlap(truth: UnitTruth, predicted: Moments, control: Moments) -> float | None:
    """|P and T| / |T|: T the genes that are differentially expressed in truth, P those in the predicted cells against
    the real controls (Welch, Benjamini-Hochberg), at most |T| of them, by |log fold change|. None where T is empty.
    Both grow with the number of cells, so that it is to be the same for all methods."""
    wanted = int(truth.significant.sum())
    if wanted == 0 or predicted.cells < 2:
        return None
    found = np.flatnonzero(benjamini_hochberg(welch(predicted, control)[1]))
    change = np.abs(predicted.mean - control.mean)[found]
    kept = found[np.argsort(-change, kind="stable")[:wanted]]
    return float(truth.significant[kept].sum() / wanted)
