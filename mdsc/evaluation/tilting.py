"""Exponential tilting: a gene's own token frequencies, bent by what the visible genes say about the cell.

    p(t | gene g, scores s) is proportional to p_g(t) exp(sum_m s_m a_{m,t} + b_t)

with a, b fitted by maximum likelihood. If counts were Poisson, s = log(rate / mean rate) and tokens the counts, the fit
would be a_t = t, b = 0, and the tilted law exactly the Poisson law of the new rate.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Integer
from scipy.optimize import minimize
from scipy.special import logsumexp

from mdsc.evaluation.predictor import Counts, Visible

PRIOR_PRECISION = 0.1  # of each coefficient: a standard deviation of 3


@dataclass(frozen=True)
class Tilt:
    """A fitted tilt. Scores beyond what the fit has seen are held at its bounds: exponents extrapolate badly."""

    base: Float32[np.ndarray, "genes V"]
    """log p_g(t)"""
    coefficients: Float32[np.ndarray, "scores_plus_one V"]
    """a_{m,t} of the scores, and b_t in the last row"""
    lowest: Float32[np.ndarray, " scores"]
    highest: Float32[np.ndarray, " scores"]
    loss: float
    """Mean nll of the positions it was fitted on, with the prior."""

    @classmethod
    def fit(
        cls,
        base: Float[np.ndarray, "genes V"],
        scores: Float[np.ndarray, "positions scores"],
        genes: Int[np.ndarray, " positions"],
        tokens: Integer[np.ndarray, " positions"],
    ) -> "Tilt":
        """Maximum likelihood, with a wide Gaussian prior that keeps tokens that hardly occur near no tilt at all."""
        base, scores = base.astype(np.float32), scores.astype(np.float32)
        # Tokens that do not occur here are left as they are; a rank tokenizer uses a third of its 64.
        number = np.bincount(tokens, minlength=base.shape[1])
        used = np.flatnonzero(number)
        column = np.searchsorted(used, tokens)
        gene_base = base[:, used][genes]
        features = np.column_stack([scores, np.ones(len(scores), dtype=np.float32)])
        seen = np.stack([np.bincount(column, weights=feature, minlength=len(used)) for feature in features.T])
        rows = np.arange(len(tokens))
        # Curvature grows with how often a token occurs: measured in these units the problem is round.
        unit = 1 / np.sqrt(number[used] + PRIOR_PRECISION)

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            a = flat.reshape(seen.shape) * unit
            logits = gene_base + features @ a.astype(np.float32)
            logits -= logits.max(axis=1, keepdims=True)
            at_true = logits[rows, column].sum(dtype=np.float64)
            p = np.exp(logits, out=logits)
            total = p.sum(axis=1, keepdims=True)
            p /= total
            loss = np.log(total).sum(dtype=np.float64) - at_true + PRIOR_PRECISION * (a**2).sum() / 2
            gradient = (features.T @ p - seen + PRIOR_PRECISION * a) * unit
            return loss / len(rows), gradient.ravel() / len(rows)

        best = minimize(loss_and_gradient, np.zeros(seen.size), jac=True, method="L-BFGS-B", options={"maxiter": 50})
        coefficients = np.zeros((seen.shape[0], base.shape[1]), dtype=np.float32)
        coefficients[:, used] = best.x.reshape(seen.shape) * unit
        return cls(base, coefficients, scores.min(axis=0), scores.max(axis=0), float(best.fun))

    def log_probs(self, scores: Float[np.ndarray, "cells genes scores"]) -> Float32[np.ndarray, "cells genes V"]:
        logits = np.clip(scores.astype(np.float32), self.lowest, self.highest) @ self.coefficients[:-1]
        logits += self.base + self.coefficients[-1]
        return normalised(logits)


def normalised(logits: Float32[np.ndarray, "cells genes V"]) -> Float32[np.ndarray, "cells genes V"]:
    return logits - logsumexp(logits, axis=-1, keepdims=True)


def depth_ratio(
    counts: Counts, visible: Visible, mean_count: Float[np.ndarray, " genes"]
) -> Float[np.ndarray, " cells"]:
    """Visible depth of each cell over what an average cell has at the same genes; one count is added to either."""
    return (np.where(visible, counts, 0).sum(axis=1) + 1) / (visible @ mean_count + 1)


def drawn_positions(hidden: Visible, most: int) -> tuple[Int[np.ndarray, " positions"], Int[np.ndarray, " positions"]]:
    """(cells, genes) of at most `most` hidden positions, evenly drawn; the same at every call."""
    cells, genes = np.nonzero(hidden)
    if len(cells) > most:
        rows = np.sort(np.random.default_rng(0).choice(len(cells), most, replace=False))
        cells, genes = cells[rows], genes[rows]
    return cells, genes
