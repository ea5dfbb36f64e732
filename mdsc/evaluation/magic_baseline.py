"""MAGIC (van Dijk et al. 2018, "Recovering gene interactions from single-cell data using data diffusion", Cell 174).

The cells' graph is that of its authors' package (magic-impute)."""

import warnings

import numpy as np
from scipy.special import xlogy

from mdsc.evaluation.predictor import AskedCells, TrainingCells, Visible
from mdsc.evaluation.visible_matrix import FilledMatrix, VisibleMatrix

MOST_STEPS = 12
TUNING_CELLS = 400


def fit_magic(train: TrainingCells, hidden: Visible, asked: AskedCells) -> FilledMatrix:
    """Log-normalised counts are averaged along t steps of a random walk between like cells.

    t has the best Poisson likelihood of hidden counts of training cells, where MAGIC itself takes 3 or looks for the
    step at which little changes any more; the graph is as its package makes it by default.
    """
    matrix = VisibleMatrix(train, hidden, asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from magic import MAGIC

        components = min(100, min(matrix.counts.shape) - 1)
        walk = MAGIC(n_pca=components, random_state=0, n_jobs=1, verbose=0).fit(matrix.log_normalised).diff_op
    rows = slice(0, min(TUNING_CELLS, len(train.counts)))
    smoothed = matrix.log_normalised.toarray()
    best, best_loss = smoothed, np.inf
    for _ in range(MOST_STEPS):
        smoothed = np.asarray(walk @ smoothed, dtype=np.float32)
        loss = _poisson_loss(matrix, smoothed[rows], rows)
        if loss >= best_loss:
            break
        best, best_loss = smoothed, loss
    return matrix.filled(best)


def _poisson_loss(matrix: VisibleMatrix, smoothed: np.ndarray, rows: slice) -> float:
    mean = matrix.to_counts(smoothed, rows) * matrix.gene_factors(smoothed, rows) + 1e-6
    loss = mean - xlogy(matrix.train.counts[rows], mean)
    return float(loss[matrix.hidden[rows]].mean(dtype=np.float64))
