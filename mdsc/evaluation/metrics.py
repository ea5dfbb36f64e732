"""How good predictions of hidden counts are: sums per cell first, so that cells can be streamed and resampled.

All metrics are over hidden positions alone. With p(t) the predicted probability of token t, c_t the count that t stands
for in the cell (`Tokenizer.decode_table`: from its visible counts), x the true count and m = sum_t p(t) c_t:

nll                         -log p(true token), mean over positions: nats per gene
nll_counts                  -log p(true count), for the count tokenizer only: nll plus -log p(count | token)
accuracy                    share of positions where the most probable token is the true one
accuracy_nonzero            the same over positions with x > 0
mae_log1p                   |log1p(m) - log1p(x)|, mean over positions
mae_log1p_median            the same with the median of p in the place of m: it is the median that makes such an error
                            least. Where most counts are zeros it mostly is zero, and so is the best that can be said
spearman_nonzero            rank correlation of m and x over a cell's positions with x > 0, mean over cells; 0 where m
                            is constant. Cells with fewer than 3 such positions, or one x at all, are left out
zero_rate_error             |mean p(0) - share of x = 0|
zero_rate_error_max_decile  the largest of these over ten groups of genes by mean expression
crps                        continuous ranked probability score of log1p(count), mean over positions (Gneiting & Raftery
                            2007, "Strictly proper scoring rules", eq. 21): E|Y - y| - E|Y - Y'|/2

A predictor that says one count m and no law has mae_log1p (with its m as the median, too) and spearman_nonzero; its
other metrics are NaN.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Integer
from scipy.stats import rankdata

from mdsc.evaluation.calibration import Calibration, calibration_of

NUM_DECILES = 10
LOWER_IS_BETTER = {
    "nll": True,
    "accuracy": False,
    "accuracy_nonzero": False,
    "mae_log1p": True,
    "mae_log1p_median": True,
    "spearman_nonzero": False,
    "zero_rate_error": True,
    "zero_rate_error_max_decile": True,
    "crps": True,
}


@dataclass(frozen=True)
class CellScores:
    """Sums over the hidden positions of each cell; every field is additive over several hidings of the same cells."""

    positions: Float64[np.ndarray, " cells"]
    nonzero: Float64[np.ndarray, " cells"]
    nll: Float64[np.ndarray, " cells"]
    nll_within_token: Float64[np.ndarray, " cells"]
    correct: Float64[np.ndarray, " cells"]
    correct_nonzero: Float64[np.ndarray, " cells"]
    error_log1p: Float64[np.ndarray, " cells"]
    error_log1p_median: Float64[np.ndarray, " cells"]
    crps: Float64[np.ndarray, " cells"]
    spearman: Float64[np.ndarray, " cells"]
    spearman_defined: Float64[np.ndarray, " cells"]
    decile_positions: Float64[np.ndarray, "cells deciles"]
    zeros_predicted: Float64[np.ndarray, "cells deciles"]
    zeros_observed: Float64[np.ndarray, "cells deciles"]
    calibration: Calibration | None
    """None where there is no law, or nobody asked."""

    @classmethod
    def concatenated(cls, parts: list["CellScores"]) -> "CellScores":
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in cls._arrays()}
        known = [part.calibration for part in parts if part.calibration is not None]
        return cls(**joined, calibration=Calibration.concatenated(known) if known else None)

    def __add__(self, other: "CellScores") -> "CellScores":
        """Scores of the same cells, hidden twice."""
        summed = {name: getattr(self, name) + getattr(other, name) for name in self._arrays()}
        one, two = self.calibration, other.calibration
        return type(self)(**summed, calibration=None if one is None or two is None else one + two)

    def metrics(self) -> dict[str, float]:
        return {name: float(value[0]) for name, value in self._weighted(np.ones((1, len(self.nll)))).items()}

    @cached_property
    def standard_errors(self) -> dict[str, float]:
        """Standard deviation of each metric when the cells are drawn with replacement (bootstrap)."""
        draws = self._weighted(bootstrap_weights(len(self.nll)))
        return {name: float(np.std(value, ddof=1)) for name, value in draws.items()}

    @cached_property
    def calibration_metrics(self) -> tuple[dict, dict]:
        """{group: {metric: value}} of `Calibration`, and the standard errors of the same (bootstrap over cells); both
        empty where there is none."""
        if self.calibration is None:
            return {}, {}
        values = self.calibration.weighted(np.ones((1, len(self.nll))))
        draws = self.calibration.weighted(bootstrap_weights(len(self.nll)))
        return (
            {group: {name: value[0] for name, value in of_group.items()} for group, of_group in values.items()},
            {
                group: {name: np.std(value, axis=0, ddof=1) for name, value in of_group.items()}
                for group, of_group in draws.items()
            },
        )

    def zero_rates(self) -> tuple[Float64[np.ndarray, " deciles"], Float64[np.ndarray, " deciles"]]:
        """Predicted and observed share of zeros among the hidden positions of each decile of genes; NaN without any."""
        positions = self.decile_positions.sum(axis=0)
        return (
            _ratio(self.zeros_predicted.sum(axis=0), positions),
            _ratio(self.zeros_observed.sum(axis=0), positions),
        )

    def _weighted(self, weights: Float64[np.ndarray, "draws cells"]) -> dict[str, Float64[np.ndarray, " draws"]]:
        total = {name: weights @ getattr(self, name) for name in self._arrays()}
        positions = total["positions"]
        zero_gap = np.abs(total["zeros_predicted"] - total["zeros_observed"])
        gap = np.abs(total["zeros_predicted"].sum(axis=1) - total["zeros_observed"].sum(axis=1))
        decile_gap = np.where(total["decile_positions"] > 0, _ratio(zero_gap, total["decile_positions"]), 0.0)
        metrics = {
            "nll": _ratio(total["nll"], positions),
            "accuracy": _ratio(total["correct"], positions),
            "accuracy_nonzero": _ratio(total["correct_nonzero"], total["nonzero"]),
            "mae_log1p": _ratio(total["error_log1p"], positions),
            "mae_log1p_median": _ratio(total["error_log1p_median"], positions),
            "spearman_nonzero": _ratio(total["spearman"], total["spearman_defined"]),
            "zero_rate_error": _ratio(gap, positions),
            "zero_rate_error_max_decile": decile_gap.max(axis=1),
            "crps": _ratio(total["crps"], positions),
        }
        if self.nll_within_token.any():
            metrics["nll_counts"] = _ratio(total["nll"] + total["nll_within_token"], positions)
        return metrics

    @classmethod
    def _arrays(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name != "calibration"]


def score_cells(
    log_probs: Float32[np.ndarray, "cells genes V"],
    tokens: Integer[np.ndarray, "cells genes"],
    counts: Integer[np.ndarray, "cells genes"],
    hidden: Bool[np.ndarray, "cells genes"],
    table: Float64[np.ndarray, "cells V"],
    deciles: Int[np.ndarray, " genes"],
    nll_within_token: Float64[np.ndarray, "cells genes"] | None = None,
    *,
    calibrated: bool = True,
) -> CellScores:
    """Scores of one batch of cells. tokens, counts: the truth; table: `decode_table`; deciles: `expression_deciles`;
    nll_within_token: -log p(count | token), where the tokenizer has it; calibrated: with `Calibration`, which takes as
    long as all the rest."""
    num_cells = len(log_probs)
    cell, gene = np.nonzero(hidden)
    log_p = log_probs[cell, gene]
    p = np.exp(log_p)
    token, count = tokens[cell, gene].astype(np.int64), counts[cell, gene]
    is_nonzero = count > 0
    correct = log_p.argmax(axis=1) == token
    # Cell by cell, because each has its own counts for the tokens.
    bounds = np.searchsorted(cell, np.arange(num_cells + 1))
    mean, median, crps = np.empty(len(cell)), np.empty(len(cell)), np.empty(len(cell))
    for i, (start, stop) in enumerate(pairwise(bounds)):
        rows = slice(start, stop)
        mean[rows] = p[rows] @ table[i]
        below_half = (p[rows].cumsum(axis=1) < 0.5).sum(axis=1)
        median[rows] = table[i][np.minimum(below_half, len(table[i]) - 1)]
        crps[rows] = crps_of(p[rows], np.log1p(table[i]), np.log1p(count[rows]))

    within = np.zeros(len(cell)) if nll_within_token is None else nll_within_token[cell, gene]
    return _summed(
        num_cells,
        cell,
        deciles[gene],
        count,
        mean,
        median=median,
        zeros_predicted=p[:, 0],
        nll=-np.take_along_axis(log_p, token[:, None], axis=1)[:, 0],
        nll_within_token=within,
        correct=correct,
        correct_nonzero=correct & is_nonzero,
        crps=crps,
        calibration=calibration_of(p, cell, count, table, mean) if calibrated else None,
    )


def score_points(
    expected: Float32[np.ndarray, "cells genes"],
    counts: Integer[np.ndarray, "cells genes"],
    hidden: Bool[np.ndarray, "cells genes"],
    deciles: Int[np.ndarray, " genes"],
) -> CellScores:
    """Scores of one batch of cells of which a predictor says one count each; NaN where a law would be needed."""
    cell, gene = np.nonzero(hidden)
    mean = expected[cell, gene].astype(np.float64)
    unknown = np.full(len(cell), np.nan)
    laws = dict.fromkeys(("zeros_predicted", "nll", "correct", "correct_nonzero", "crps"), unknown)
    within = np.zeros(len(cell))
    return _summed(
        len(counts), cell, deciles[gene], counts[cell, gene], mean, median=mean, nll_within_token=within, **laws
    )


def _summed(
    num_cells: int,
    cell: Int[np.ndarray, " positions"],
    decile: Int[np.ndarray, " positions"],
    count: Integer[np.ndarray, " positions"],
    mean: Float64[np.ndarray, " positions"],
    *,
    median: Float64[np.ndarray, " positions"],
    zeros_predicted: Float[np.ndarray, " positions"],
    calibration: Calibration | None = None,
    **sums: np.ndarray,
) -> CellScores:
    """Sums per cell of what is known of each hidden position, which are in the order of the cells."""
    is_nonzero = count > 0
    bounds = np.searchsorted(cell, np.arange(num_cells + 1))
    spearman = np.empty(num_cells)
    for i, (start, stop) in enumerate(pairwise(bounds)):
        expressed = is_nonzero[start:stop]
        spearman[i] = _spearman(mean[start:stop][expressed], count[start:stop][expressed])

    def per_cell(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, weights=values, minlength=num_cells)

    def per_decile(values: np.ndarray) -> np.ndarray:
        flat = np.bincount(cell * NUM_DECILES + decile, weights=values, minlength=num_cells * NUM_DECILES)
        return flat.reshape(num_cells, NUM_DECILES)

    return CellScores(
        positions=per_cell(np.ones(len(cell))),
        nonzero=per_cell(is_nonzero),
        error_log1p=per_cell(np.abs(np.log1p(mean) - np.log1p(count))),
        error_log1p_median=per_cell(np.abs(np.log1p(median) - np.log1p(count))),
        spearman=np.nan_to_num(spearman),
        spearman_defined=np.isfinite(spearman).astype(np.float64),
        decile_positions=per_decile(np.ones(len(cell))),
        zeros_predicted=per_decile(zeros_predicted),
        zeros_observed=per_decile(~is_nonzero),
        calibration=calibration,
        **{name: per_cell(values) for name, values in sums.items()},
    )


def crps_of(
    p: Float[np.ndarray, "positions V"], v: Float64[np.ndarray, " V"], y: Float64[np.ndarray, " positions"]
) -> Float64[np.ndarray, " positions"]:
    """CRPS of laws p on the points v, which never decrease, at y, which need not be one of the points."""
    below = p.cumsum(axis=1)[:, :-1]
    spread = (below * (1 - below)) @ np.diff(v)  # E|Y - Y'| / 2
    return np.einsum("nv,nv->n", p, np.abs(v - y[:, None])) - spread


def expression_deciles(mean_count: Float[np.ndarray, " genes"]) -> Int[np.ndarray, " genes"]:
    """Group 0 to 9 of each gene, the most expressed last; groups of equal size."""
    rank = np.argsort(np.argsort(mean_count, kind="stable"), kind="stable")
    return rank * NUM_DECILES // len(mean_count)


def bootstrap_weights(num_cells: int, num_draws: int = 200, seed: int = 0) -> Float64[np.ndarray, "draws cells"]:
    """How often each cell is in each resample; the same for every predictor, so that differences are paired."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_cells, np.full(num_cells, 1 / num_cells), size=num_draws).astype(np.float64)


def nll_difference(first: CellScores, second: CellScores) -> tuple[float, float]:
    """nll of `first` minus that of `second` on the same hidden positions, and its paired bootstrap standard error."""
    assert np.array_equal(first.positions, second.positions), "scores of different hidden positions"
    weights = np.concatenate([np.ones((1, len(first.nll))), bootstrap_weights(len(first.nll))])
    difference = _ratio(weights @ (first.nll - second.nll), weights @ first.positions)
    return float(difference[0]), float(np.std(difference[1:], ddof=1))


def _spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    if len(true) < 3 or (true == true[0]).all():
        return np.nan
    # Rounded, so that equal predictions which a matrix product has made differ in the last bit are ties.
    a, b = rankdata(np.round(np.log1p(predicted), 5)), rankdata(true)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else 0.0


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
