"""ALRA (Linderman et al. 2022, "Zero-preserving imputation of single-cell RNA-seq data", Nature Communications 13): a
low-rank matrix of log-normalised counts of which small values are zeros. Written from the paper's Methods.
"""

import numpy as np
from jaxtyping import Float, Float32

from mdsc.evaluation.predictor import AskedCells, TrainingCells, Visible
from mdsc.evaluation.visible_matrix import FilledMatrix, VisibleMatrix

MOST_RANKS = 100
NOISE_SHARE = 0.2
"""Of the singular values, the last ones, which are taken for noise."""
GAP_DEVIATIONS = 6.0
LOWEST_SHARE = 0.001
"""Quantile of a gene's low-rank values whose size is the threshold: as much above zero as the error goes below."""


def fit_alra(train: TrainingCells, hidden: Visible, asked: AskedCells) -> FilledMatrix:
    matrix = VisibleMatrix(train, hidden, asked)
    return matrix.filled(alra(matrix.log_normalised.toarray()))


def alra(values: Float32[np.ndarray, "cells genes"], rank: int | None = None) -> Float32[np.ndarray, "cells genes"]:
    """Denoise log-normalised values, 0 or more. rank: by default where the singular values' gaps end to stand out.

    Low-rank values below a gene's threshold become zero; the others get the mean and the deviation of the gene's
    nonzero values; where a value was above zero and would no longer be, it stays what it was.
    """
    from sklearn.utils.extmath import randomized_svd

    most = max(1, min(MOST_RANKS, min(values.shape) - 1))
    u, singular, vt = randomized_svd(values, most, n_iter=4, random_state=0)
    rank = chosen_rank(singular) if rank is None else rank
    low_rank = (u[:, :rank] * singular[:rank]) @ vt[:rank]
    threshold = np.abs(np.quantile(low_rank, LOWEST_SHARE, axis=0))
    kept = low_rank > threshold
    mean_low, sd_low = _moments(low_rank, kept)
    mean, sd = _moments(values, values > 0)
    usable = (sd_low > 0) & (sd > 0)
    scale = np.where(usable, sd / np.where(usable, sd_low, 1), 1)
    shift = np.where(usable, mean - mean_low * scale, 0)
    denoised = np.where(kept, np.maximum(low_rank * scale + shift, 0), 0)
    return np.where((values > 0) & (denoised == 0), values, denoised).astype(np.float32)


def chosen_rank(singular: Float[np.ndarray, " ranks"]) -> int:
    """The last rank whose gap to the next singular value stands out from those among the values taken for noise."""
    gaps = singular[:-1] - singular[1:]
    noise = gaps[-max(2, round(NOISE_SHARE * len(singular))) :]
    if len(gaps) < 3:
        return len(singular)
    outstanding = np.flatnonzero(gaps > noise.mean() + GAP_DEVIATIONS * noise.std(ddof=1))
    return int(outstanding[-1]) + 1 if len(outstanding) else 1


def _moments(
    values: Float32[np.ndarray, "cells genes"], taken: Visible
) -> tuple[Float[np.ndarray, " genes"], Float[np.ndarray, " genes"]]:
    """Mean and standard deviation of each gene's taken values; 0 where there are too few."""
    number = taken.sum(axis=0)
    mean = (values * taken).sum(axis=0, dtype=np.float64) / np.maximum(number, 1)
    squares = (((values - mean.astype(np.float32)) * taken) ** 2).sum(axis=0, dtype=np.float64)
    return mean, np.sqrt(squares / np.maximum(number - 1, 1))
