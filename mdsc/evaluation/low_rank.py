"""Baseline: a low-rank picture of the cell, fitted to its visible genes, read out at the hidden ones."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from mdsc.evaluation.marginals import FIT_POSITIONS, gene_frequencies
from mdsc.evaluation.predictor import Baseline, Counts, LogProbs, TrainingCells, Visible
from mdsc.evaluation.tilting import Tilt, depth_ratio, drawn_positions

RANKS = (5, 10, 20, 40)
RIDGES = (1.0, 3.0, 10.0)
NUM_FOLDS = 4


@dataclass(frozen=True)
class LowRank(Baseline):
    """Truncated SVD of log1p(counts at equal depth), less each gene's mean.

    A cell's few coordinates z come from its visible genes by ridge regression onto the gene loadings (loadings times
    singular values, so that z has unit variance and the ridge is the noise variance of probabilistic PCA, Tipping &
    Bishop 1999, times a factor); W z + mean is then the expected expression of the hidden genes. It becomes token
    probabilities by tilting the gene marginal with log depth, W z, and the log of the expected rate over the gene's
    mean rate. A gene's own mean takes part as well: its marginal is a mixture over the states of cells, which the other
    scores resolve in part, for common genes more than for rare ones; without it the zero rates of common genes are off
    by 0.05.

    Rank and ridge factor have the least squared error, and the tilt the best likelihood, on training cells that the
    loadings have not seen (folds), positions hidden at the same mask ratio.
    """

    mean_count: Float[np.ndarray, " genes"]
    gene_mean: Float32[np.ndarray, " genes"]
    loadings: Float32[np.ndarray, "genes rank"]
    ridge: float
    tilt: Tilt

    @classmethod
    def fit(cls, train: TrainingCells, hidden: Visible) -> "LowRank":
        mean_count = train.mean_count
        x = _expression(train.counts, np.ones_like(hidden), mean_count)
        gene_mean = x.mean(axis=0)
        x -= gene_mean
        seen = (_expression(np.where(hidden, 0, train.counts), ~hidden, mean_count) - gene_mean) * ~hidden
        fold = np.arange(len(x)) % NUM_FOLDS
        fits = [_loadings(x[fold != i]) for i in range(NUM_FOLDS)]

        predicted = np.empty_like(x)
        best = (np.inf, 0, 0.0)
        for rank, factor in {(min(rank, *x.shape), factor): None for rank in RANKS for factor in RIDGES}:
            error = 0.0
            for i, (loadings, noise) in enumerate(fits):
                rows = fold == i
                out = _reconstruct(seen[rows], ~hidden[rows], loadings[:, :rank], factor * noise[rank])
                error += ((out - x[rows])[hidden[rows]] ** 2).sum(dtype=np.float64)
                predicted[rows] = out
            if error < best[0]:
                best, best_predicted = (error, rank, factor), predicted.copy()
        _, rank, factor = best

        cells, genes = drawn_positions(hidden, FIT_POSITIONS)
        s = np.log(depth_ratio(train.counts, ~hidden, mean_count))
        scores = _scores(best_predicted[cells, genes], s[cells], gene_mean[genes], _level(gene_mean)[genes])
        tilt = Tilt.fit(np.log(gene_frequencies(train)), scores, genes, train.tokens[cells, genes])
        loadings, noise = _loadings(x)
        return cls(mean_count, gene_mean, loadings[:, :rank], float(factor * noise[rank]), tilt)

    def predict(self, counts: Counts, visible: Visible) -> LogProbs:
        seen = (_expression(counts, visible, self.mean_count) - self.gene_mean) * visible
        predicted = _reconstruct(seen, visible, self.loadings, self.ridge)
        s = np.log(depth_ratio(counts, visible, self.mean_count))
        return self.tilt.log_probs(_scores(predicted, s[:, None], self.gene_mean, _level(self.gene_mean)))


def _expression(counts: Counts, visible: Visible, mean_count: np.ndarray) -> Float32[np.ndarray, "cells genes"]:
    """log1p of counts at the depth of the average cell."""
    return np.log1p(counts / depth_ratio(counts, visible, mean_count)[:, None]).astype(np.float32)


def _loadings(
    x: Float32[np.ndarray, "cells genes"],
) -> tuple[Float32[np.ndarray, "genes rank"], Float[np.ndarray, " rank_plus_one"]]:
    """Loadings at unit variance of the coordinates, and the noise variance that is left at each rank."""
    from sklearn.utils.extmath import randomized_svd

    rank = min(max(RANKS), *x.shape)
    _, singular, vt = randomized_svd(x, rank, random_state=0)
    left = (x**2).sum(dtype=np.float64) - np.concatenate([[0.0], np.cumsum(singular.astype(np.float64) ** 2)])
    loadings = vt.T * (singular / np.sqrt(len(x)))
    return np.ascontiguousarray(loadings, dtype=np.float32), np.maximum(left / x.size, 1e-6)


def _reconstruct(
    seen: Float32[np.ndarray, "cells genes"],
    visible: Visible,
    loadings: Float32[np.ndarray, "genes rank"],
    ridge: float,
) -> Float32[np.ndarray, "cells genes"]:
    """W z with z = (W'MW + ridge I)^-1 W'M seen, M the visible genes of each cell."""
    num_genes, rank = loadings.shape
    outer = (loadings[:, :, None] * loadings[:, None, :]).reshape(num_genes, rank * rank)
    gram = (visible.astype(np.float32) @ outer).reshape(-1, rank, rank)
    gram[:, np.arange(rank), np.arange(rank)] += ridge
    z = np.linalg.solve(gram, (seen @ loadings)[..., None])[..., 0]
    return z @ loadings.T


def _level(gene_mean: Float32[np.ndarray, " genes"]) -> Float32[np.ndarray, " genes"]:
    """Log mean rate of each gene, standardised."""
    level = np.log(np.expm1(gene_mean) + 1e-3)
    return (level - level.mean()) / max(float(level.std()), 1e-6)


def _scores(
    predicted: Float32[np.ndarray, "*positions"],
    log_depth: Float[np.ndarray, "*#positions"],
    gene_mean: Float32[np.ndarray, "*#positions"],
    level: Float32[np.ndarray, "*#positions"],
) -> Float32[np.ndarray, "*positions scores"]:
    """What the tilt sees. The rate is kept above a fiftieth of the gene's mean rate, because its logarithm is taken."""
    mean_rate = np.expm1(gene_mean)
    rate = np.maximum(np.expm1(predicted + gene_mean), 0)
    floor = 0.02 * mean_rate + 1e-6
    log_ratio = np.log((rate + floor) / (mean_rate + floor)).clip(-4, 4)
    scores = [log_depth, predicted, log_ratio, level, level * log_depth, level * log_ratio]
    return np.stack(np.broadcast_arrays(*scores), axis=-1, dtype=np.float32)
