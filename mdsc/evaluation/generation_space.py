"""The space in which cells are compared: log-normalised counts, and their principal components over training cells."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int64

from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError

NUM_COMPONENTS = 50


@dataclass(frozen=True)
class ExpressionSpace:
    """Fitted on training cells alone, so that no set that is compared has a say in it."""

    target_depth: float
    """Cells are scaled to this many counts: the training cells' median."""
    mean: Float[np.ndarray, " genes"]
    components: Float[np.ndarray, "k genes"]

    @classmethod
    def fit(cls, train: sp.csr_matrix, num_components: int = NUM_COMPONENTS) -> "ExpressionSpace":
        """train: (cells, genes) raw counts, 3 cells and 3 genes at least."""
        from sklearn.decomposition import PCA

        depth = np.asarray(train.sum(axis=1)).ravel()
        target = float(np.median(depth[depth > 0])) if (depth > 0).any() else 1.0
        values = log_normalised(train, target)
        number = min(num_components, min(train.shape) - 1)
        # A matrix of equal cells has no direction at all, and the solver would say so in its own words.
        if number < 1 or (values[1:] - values[:-1]).count_nonzero() == 0:
            raise UserError(
                f"no space to compare cells in: the {train.shape[0]:,} training cells x {train.shape[1]:,} genes are "
                "too few, or all alike (are the counts in another --layer?)."
            )
        pca = PCA(number, svd_solver="arpack", random_state=0).fit(values)
        return cls(target, pca.mean_, pca.components_)

    def log_normalised(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        return log_normalised(counts, self.target_depth)

    def project(self, counts: sp.csr_matrix) -> Float[np.ndarray, "cells k"]:
        return self.log_normalised(counts) @ self.components.T - self.mean @ self.components.T


def most_variable(values: sp.csr_matrix, number: int) -> Int64[np.ndarray, " genes"]:
    """Columns of greatest variance, ascending."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    return np.sort(np.argsort(-variance, kind="stable")[:number]).astype(np.int64)
