"""Baseline: the tokens of the training cells that are most like the visible part of a cell."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from mdsc.evaluation.marginals import DepthMarginal
from mdsc.evaluation.predictor import Baseline, Counts, LogProbs, TrainingCells, Visible
from mdsc.evaluation.tilting import depth_ratio

NUM_NEIGHBOURS = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300)
PSEUDO_COUNTS = (1.0, 3.0, 10.0, 20.0, 40.0, 80.0)
DEPTH_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
TUNING_CELLS = 300


@dataclass(frozen=True)
class NearestCells(Baseline):
    """Token frequencies among the k nearest training cells, shrunk towards the depth-scaled marginal:
    (n_t + c p_depth(t)) / (k + c).

    The distance, over the visible genes only, is 1 - cosine of log1p(counts at equal depth), each gene less its mean
    over the training cells, plus w times the squared difference of log depths: neighbours of another depth have other
    tokens. (A Euclidean distance is clearly worse on real cells.) k, c and w are chosen by leaving training cells out,
    their positions hidden at the same mask ratio.
    """

    train: TrainingCells
    reference: "Reference"
    depth_marginal: DepthMarginal
    num_neighbours: int
    pseudo_count: float
    depth_weight: float

    @classmethod
    def fit(cls, train: TrainingCells, hidden: Visible) -> "NearestCells":
        depth_marginal = DepthMarginal.fit(train, hidden)
        num_cells = len(train.counts)
        assert num_cells > 1, "nearest cells need at least two training cells"
        cells = np.random.default_rng(0).permutation(num_cells)[:TUNING_CELLS]
        counts, visible = np.where(hidden, 0, train.counts)[cells], ~hidden[cells]
        true = train.tokens[cells]
        backing = np.empty(true.shape, dtype=np.float32)
        for row in range(len(cells)):
            log_p = depth_marginal.predict(counts[row : row + 1], visible[row : row + 1])[0]
            backing[row] = np.exp(np.take_along_axis(log_p, true[row].astype(np.int64)[:, None], axis=1)[:, 0])

        sizes = np.array([k for k in NUM_NEIGHBOURS if k < num_cells] or [num_cells - 1])
        best = (np.inf, 0, 0.0, 0.0)
        pseudo_counts = np.array(PSEUDO_COUNTS)[:, None, None]
        reference = Reference.of(train)
        shape, depth = reference.distances(counts, visible)
        for weight in DEPTH_WEIGHTS:
            distance = shape + weight * depth
            distance[np.arange(len(cells)), cells] = np.inf  # leave the cell itself out
            nearest = _nearest(distance, int(sizes[-1]))
            nll = np.zeros((len(PSEUDO_COUNTS), len(sizes)))
            for row in range(len(cells)):
                genes = np.flatnonzero(~visible[row])
                same = train.tokens[nearest[row][:, None], genes] == true[row, genes]
                hits = same.cumsum(axis=0, dtype=np.int32)[sizes - 1]
                p = (hits + pseudo_counts * backing[row, genes]) / (sizes[:, None] + pseudo_counts)
                nll -= np.log(p).sum(axis=2)
            c, k = np.unravel_index(nll.argmin(), nll.shape)
            best = min(best, (float(nll[c, k]), int(sizes[k]), PSEUDO_COUNTS[c], weight))
        return cls(train, reference, depth_marginal, *best[1:])

    def predict(self, counts: Counts, visible: Visible) -> LogProbs:
        shape, depth = self.reference.distances(counts, visible)
        nearest = _nearest(shape + self.depth_weight * depth, self.num_neighbours)
        p = self.pseudo_count * np.exp(self.depth_marginal.predict(counts, visible))
        num_genes, num_tokens = p.shape[1:]
        offset = np.arange(num_genes) * num_tokens
        for row, neighbours in enumerate(nearest):
            index = (self.train.tokens[neighbours] + offset).ravel()
            p[row] += np.bincount(index, minlength=num_genes * num_tokens).reshape(num_genes, num_tokens)
        p /= self.num_neighbours + self.pseudo_count
        return np.log(p, out=p)


@dataclass(frozen=True)
class Reference:
    """The training cells as they are compared with others: made once, as of 16,000 genes it takes a second."""

    mean_count: Float[np.ndarray, " genes"]
    gene_mean: Float32[np.ndarray, " genes"]
    values: Float32[np.ndarray, "train_cells genes"]
    """log1p(counts at equal depth) less the gene's mean."""
    squares: Float32[np.ndarray, "train_cells genes"]
    log_depth: Float[np.ndarray, " train_cells"]

    @classmethod
    def of(cls, train: TrainingCells) -> "Reference":
        everything = np.ones_like(train.counts, dtype=bool)
        depth = depth_ratio(train.counts, everything, train.mean_count)
        values = np.log1p(train.counts / depth[:, None].astype(np.float32)).astype(np.float32)
        gene_mean = values.mean(axis=0)
        values -= gene_mean
        return cls(train.mean_count, gene_mean, values, values**2, np.log(depth))

    def distances(
        self, counts: Counts, visible: Visible
    ) -> tuple[Float32[np.ndarray, "cells train_cells"], Float32[np.ndarray, "cells train_cells"]]:
        """1 - cosine over the visible genes, and squared difference of log depth, to every training cell."""
        depth = depth_ratio(counts, visible, self.mean_count)
        query = (np.log1p(counts / depth[:, None]).astype(np.float32) - self.gene_mean) * visible
        mask = visible.astype(np.float32)
        norms = np.sqrt((query**2).sum(axis=1)[:, None] * (mask @ self.squares.T))
        cosine = query @ self.values.T / np.maximum(norms, 1e-6)
        log_ratio = np.log(depth)[:, None] - self.log_depth
        return 1 - cosine, (log_ratio**2).astype(np.float32)


def _nearest(distance: Float32[np.ndarray, "cells train_cells"], k: int) -> Int[np.ndarray, "cells k"]:
    """Indices of the k nearest, nearest first."""
    return np.argsort(distance, axis=1, kind="stable")[:, :k]
