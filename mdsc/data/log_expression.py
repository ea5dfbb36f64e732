"""Log expression: counts of a cell at a common depth, in logarithms. What perturbations are compared in."""

import numpy as np
import scipy.sparse as sp

TARGET_DEPTH = 1e4
"""Counts per cell that perturbed cells are scaled to, over the genes that are compared (CP10k)."""


def log_normalised(counts: sp.csr_matrix, target_depth: float = TARGET_DEPTH) -> sp.csr_matrix:
    """log1p(count / depth of the cell * target_depth), float64; a cell without counts stays 0."""
    depth = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    values = (sp.diags(target_depth / depth) @ counts.astype(np.float64)).tocsr()
    values.data = np.log1p(values.data)
    return values
