"""Baselines that know each gene but not its neighbours: token frequencies, then these scaled by the cell's depth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from mdsc.evaluation.predictor import Baseline, Counts, LogProbs, TrainingCells, Visible
from mdsc.evaluation.tilting import Tilt, depth_ratio, drawn_positions

PSEUDO_COUNTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FIT_POSITIONS = 60_000


@dataclass(frozen=True)
class Majority(Baseline):
    """One law for all genes and cells, the overall token frequencies; its most probable token is the majority token."""

    frequencies: Float32[np.ndarray, " V"]

    @classmethod
    def fit(cls, train: TrainingCells, hidden: Visible) -> "Majority":
        return cls(np.log(overall_frequencies(train)).astype(np.float32))

    def predict(self, counts: Counts, visible: Visible) -> LogProbs:
        return np.broadcast_to(self.frequencies, (*counts.shape, len(self.frequencies)))


@dataclass(frozen=True)
class GeneMarginal(Baseline):
    """Token frequencies of each gene over the training cells, shrunk towards the overall ones."""

    log_p: Float32[np.ndarray, "genes V"]

    @classmethod
    def fit(cls, train: TrainingCells, hidden: Visible) -> "GeneMarginal":
        return cls(np.log(gene_frequencies(train)).astype(np.float32))

    def predict(self, counts: Counts, visible: Visible) -> LogProbs:
        return np.broadcast_to(self.log_p, (len(counts), *self.log_p.shape))


@dataclass(frozen=True)
class DepthMarginal(Baseline):
    """The gene marginal tilted by one score: s = log(visible depth / expected depth of the same genes)."""

    mean_count: Float[np.ndarray, " genes"]
    tilt: Tilt

    @classmethod
    def fit(cls, train: TrainingCells, hidden: Visible) -> "DepthMarginal":
        cells, genes = drawn_positions(hidden, FIT_POSITIONS)
        s = np.log(depth_ratio(train.counts, ~hidden, train.mean_count))
        base = np.log(gene_frequencies(train))
        tilt = Tilt.fit(base, s[cells][:, None], genes, train.tokens[cells, genes])
        return cls(train.mean_count, tilt)

    def predict(self, counts: Counts, visible: Visible) -> LogProbs:
        s = np.log(depth_ratio(counts, visible, self.mean_count))
        return self.tilt.log_probs(np.broadcast_to(s[:, None, None], (*counts.shape, 1)))


def overall_frequencies(train: TrainingCells) -> Float[np.ndarray, " V"]:
    """Token frequencies over all genes and cells; half a count is added to each, so that no token is impossible."""
    total = train.token_counts.sum(axis=0) + 0.5
    return total / total.sum()


def gene_frequencies(train: TrainingCells) -> Float[np.ndarray, "genes V"]:
    """(n_gt + c q_t) / (N + c), q the overall frequencies, c the pseudo-count of best leave-one-out likelihood.

    Leaving one cell out lowers one n_gt and N by 1, so that the likelihood has a closed form:
    sum_gt n_gt log((n_gt - 1 + c q_t) / (N - 1 + c)).
    """
    n, q = train.token_counts, overall_frequencies(train)
    num_cells = len(train.counts)
    seen = n > 0

    def left_out(c: float) -> float:
        return (n[seen] * np.log((n - 1 + c * q)[seen] / (num_cells - 1 + c))).sum()

    best = max(PSEUDO_COUNTS, key=left_out)
    return (n + best * q) / (num_cells + best)
