"""Generated cells beside real ones: every metric also between two halves of real cells, and for plain baselines.

Real cells are cut at random into two halves, A and B. Generated cells, each baseline and half A, all of the same
number, are compared with B: distances of small samples are large even for equal laws, and equally so for all that are
compared. What A has is the floor. It is done anew for several cuts; their standard deviation is the noise of one.

The space is fitted on one half of the training cells, and the baselines on the other: components are fitted to the very
cells that they are fitted on, which boosted trees can tell from fresh cells of the same law by that alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from mdsc.errors import UserError
from mdsc.evaluation.generation_baselines import BASELINES
from mdsc.evaluation.generation_distances import (
    chance_of_less,
    classifier_auc,
    has_pot,
    mmd2,
    nearest_distance,
    squared_median,
    wasserstein2,
)
from mdsc.evaluation.generation_gene_fits import (
    CORRELATED_GENES,
    correlation_fits,
    depth_fits,
    gene_fits,
)
from mdsc.evaluation.generation_space import ExpressionSpace, most_variable

GENERATED, FLOOR = "generated", "real_half"
LEAST_CELLS = 20
CLASSIFIER_GENES = 1000
SCALE_CELLS = 1000

IDEAL = {
    "mmd2": 0.0,
    "w2": 0.0,
    "auc_logistic": 0.5,
    "auc_boosting": 0.5,
    **{
        f"{moment}_{fit}": ideal
        for moment in ("mean", "variance", "zero_rate")
        for fit, ideal in (("error", 0.0), ("pearson", 1.0), ("spearman", 1.0), ("slope", 1.0))
    },
    "correlation_error": 0.0,
    "correlation_pearson": 1.0,
    "depth_distance": 0.0,
    "depth_ratio": 1.0,
    "nearer_to_training": 0.5,
    "copies": 0.0,
}
"""Each metric, and the value that the right law has, up to the noise of samples."""
QUICK = ("mmd2", "w2", "mean_error", "zero_rate_error", "correlation_error", "depth_ratio")
"""What is scored of each condition."""


@dataclass(frozen=True)
class GenerationResult:
    """{row: {metric: one value for each cut}}; rows: GENERATED, FLOOR and the baselines."""

    values: dict[str, dict[str, list[float]]]
    cells: int
    """In each set that is compared."""

    def mean(self, row: str, metric: str) -> float:
        """NaN where it is not defined in some cut."""
        return float(np.mean(self.values[row][metric]))

    def deviation(self, row: str, metric: str) -> float:
        values = self.values[row][metric]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def distance(self, row: str, metric: str) -> float:
        """How far the mean is from the ideal."""
        return abs(self.mean(row, metric) - IDEAL[metric])

    def to_json(self) -> dict:
        """{"model": {metric: mean, "standard_deviation": {...}}, "floor": ..., "baselines": {name: ...}}."""
        rows = {
            row: {metric: _finite(self.mean(row, metric)) for metric in values}
            | {"standard_deviation": {metric: _finite(self.deviation(row, metric)) for metric in values}}
            for row, values in self.values.items()
        }
        return {"model": rows.pop(GENERATED), "floor": rows.pop(FLOOR), "baselines": rows, "cells_compared": self.cells}


@dataclass(frozen=True)
class _Reference:
    """What is fitted on training cells, once."""

    baseline_cells: sp.csr_matrix
    """Half of the training cells, of which the space knows nothing."""
    space: ExpressionSpace
    points: np.ndarray
    """Of all training cells."""
    scale: float
    variable: np.ndarray
    expressed: np.ndarray
    rows: frozenset[bytes]

    @classmethod
    def of(cls, train: sp.csr_matrix, seed: int) -> "_Reference":
        order = np.random.default_rng(seed).permutation(train.shape[0])
        first, second = np.array_split(order, 2)
        space = ExpressionSpace.fit(train[first])
        points = space.project(train)
        some = np.random.default_rng(0).permutation(len(points))[:SCALE_CELLS]
        total = np.asarray(train.sum(axis=0)).ravel()
        return cls(
            baseline_cells=train[second],
            space=space,
            points=points,
            scale=squared_median(points[some]),
            variable=most_variable(space.log_normalised(train), CLASSIFIER_GENES),
            expressed=np.argsort(-total, kind="stable")[:CORRELATED_GENES],
            rows=frozenset(filter(None, _row_bytes(train))),
        )


def score_generation(
    real: sp.csr_matrix,
    generated: sp.csr_matrix,
    train: sp.csr_matrix,
    *,
    most_cells: int = 1000,
    repeats: int = 5,
    seed: int = 0,
    metrics: tuple[str, ...] = tuple(IDEAL),
    say: Callable[[str], None] = lambda text: None,
) -> GenerationResult:
    """All of raw counts (cells, genes), the same genes; `train` shares no cell with `real`.

    w2 is left out where POT is missing.
    """
    for name, counts, halves in (("real", real, 2), (GENERATED, generated, 1), ("train", train, 2)):
        if counts.shape[0] < halves * LEAST_CELLS:
            least = halves * LEAST_CELLS
            raise UserError(f"--{name} has {counts.shape[0]} cells; the scores need {least} or more.")
    if not has_pot():
        metrics = tuple(metric for metric in metrics if metric != "w2")
    number = min(real.shape[0] // 2, generated.shape[0], most_cells)
    reference = _Reference.of(train, seed)
    values: dict[str, dict[str, list[float]]] = {}
    for cut in range(repeats):
        say(f"cut {cut + 1} of {repeats}: {number:,} cells of each kind")
        rng = np.random.default_rng([seed, cut])
        order = rng.permutation(real.shape[0])
        target = _Cells(real[order[:number]], reference)
        candidates = {
            GENERATED: generated[rng.permutation(generated.shape[0])[:number]],
            FLOOR: real[order[number : 2 * number]],
            **{name: make(reference.baseline_cells, number, rng) for name, make in BASELINES.items()},
        }
        for name, candidate in candidates.items():
            row = values.setdefault(name, {metric: [] for metric in metrics})
            found = _compare(_Cells(candidate, reference), target, metrics, seed)
            for metric in metrics:
                row[metric].append(found[metric])
    return GenerationResult(values, number)


@dataclass(frozen=True)
class _Cells:
    """A set of cells, and what comparisons need of it: each taken once, when it is first asked for."""

    counts: sp.csr_matrix
    reference: _Reference

    @cached_property
    def log_normalised(self) -> sp.csr_matrix:
        return self.reference.space.log_normalised(self.counts)

    @cached_property
    def points(self) -> np.ndarray:
        return self.reference.space.project(self.counts)

    @cached_property
    def expressed(self) -> np.ndarray:
        return self.log_normalised[:, self.reference.expressed].toarray()

    @cached_property
    def variable(self) -> np.ndarray:
        return self.log_normalised[:, self.reference.variable].toarray()

    @cached_property
    def points_with_depth(self) -> np.ndarray:
        """Beside the components: what normalisation takes away."""
        depth, detected = np.asarray(self.counts.sum(axis=1)).ravel(), np.diff(self.counts.indptr)
        return np.column_stack([self.points, np.log1p(depth), detected])

    @cached_property
    def distance_to_training(self) -> np.ndarray:
        return nearest_distance(self.points, self.reference.points)


def _compare(x: _Cells, y: _Cells, metrics: tuple[str, ...], seed: int) -> dict[str, float]:
    """x: the candidate; y: the target, the same for all candidates of a cut."""
    reference = x.reference
    found = gene_fits(x.counts, y.counts) | depth_fits(x.counts, y.counts) | correlation_fits(x.expressed, y.expressed)
    if "mmd2" in metrics:
        found["mmd2"] = mmd2(x.points, y.points, reference.scale)
    if "w2" in metrics:
        found["w2"] = wasserstein2(x.points, y.points)
    if "auc_logistic" in metrics:
        found["auc_logistic"] = classifier_auc(x.variable, y.variable, "logistic", seed)
    if "auc_boosting" in metrics:
        found["auc_boosting"] = classifier_auc(x.points_with_depth, y.points_with_depth, "boosting", seed)
    if "nearer_to_training" in metrics:
        found["nearer_to_training"] = chance_of_less(x.distance_to_training, y.distance_to_training)
    if "copies" in metrics:
        found["copies"] = float(np.mean([row in reference.rows for row in _row_bytes(x.counts) if row] or [0]))
    return found


def _row_bytes(counts: sp.csr_matrix) -> list[bytes]:
    """The content of each cell, equal for equal cells; empty for a cell without counts, which is nobody's copy."""
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    indices, data, indptr = counts.indices.astype(np.int32), counts.data.astype(np.int32), counts.indptr
    return [indices[a:b].tobytes() + data[a:b].tobytes() for a, b in pairwise(indptr)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
