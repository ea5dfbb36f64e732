"""Distances between predicted and real cells, as laws: E-distance and MMD, in the PCA space of training cells.

Components of few cells follow these very cells, which are then spread wider in the space than others of their law. So
the space is fitted on half of the perturbed training cells, and baselines that resample cells take them from the other
half. No control cell has a say in it: predictions start from these.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int64
from scipy.spatial.distance import cdist

from mdsc.evaluation.generation_distances import mmd2, squared_median

NUM_COMPONENTS = 50
FITTED_CELLS = 10_000
"""Training cells that the components are fitted on at most."""
MOST_CELLS = 500
"""Of each of the two sets that are compared, at most; both have the same number."""
SCALE_CELLS = 1000
LEAST_CELLS = 2


@dataclass(frozen=True, eq=False)
class TrainingSpace:
    """Principal components of log expression, of perturbed training cells alone."""

    components: Float[np.ndarray, "k genes"]
    scale: float
    """Median squared distance of two training cells: the width of the kernels (median heuristic)."""
    fitted_cells: int

    @classmethod
    def fit(cls, expression: sp.csr_matrix, seed: int) -> "TrainingSpace":
        """expression: (cells, genes) of cells that no method gives as its own."""
        from sklearn.decomposition import PCA

        order = np.random.default_rng(seed).permutation(expression.shape[0])[:FITTED_CELLS]
        values = expression[np.sort(order)]
        number = min(NUM_COMPONENTS, min(values.shape) - 1)
        if (values[1:] - values[:-1]).count_nonzero() == 0 or number < 1:
            return cls(np.eye(1, values.shape[1]), 1.0, len(order))
        components = PCA(number, svd_solver="arpack", random_state=0).fit(values).components_.astype(np.float32)
        points = cls(components, 1.0, len(order)).project(expression[order[:SCALE_CELLS]].toarray())
        return cls(components, squared_median(points), len(order))

    def project(self, cells: Float[np.ndarray, "cells genes"]) -> Float[np.ndarray, "cells k"]:
        """Not centred: distances do not see it."""
        return (cells @ self.components.T).astype(np.float64)


def e_distance(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"]) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, Euclidean (Szekely & Rizzo 2013), x and x' different cells: unbiased; its
    mean is 0 for equal laws, so that it may be below 0."""
    n, m = len(x), len(y)
    within_x, within_y = cdist(x, x).sum() / (n * (n - 1)), cdist(y, y).sum() / (m * (m - 1))
    return float(2 * cdist(x, y).mean() - within_x - within_y)


def some_rows(number: int, most: int, rng: np.random.Generator) -> Int64[np.ndarray, " some"]:
    """`most` of `number` rows at most, drawn without replacement, in the order of the draw."""
    return rng.permutation(number)[:most]


def distances(
    predicted: Float[np.ndarray, "n k"], real: Float[np.ndarray, "m k"], scale: float
) -> dict[str, float | None]:
    """Of the first cells of both, equally many: each in random order."""
    number = min(len(predicted), len(real))
    if number < LEAST_CELLS:
        return {"e_distance": None, "mmd2": None}
    x, y = predicted[:number], real[:number]
    return {"e_distance": e_distance(x, y), "mmd2": mmd2(x, y, scale)}
