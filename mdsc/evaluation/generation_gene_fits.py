"""Whether generated cells have each gene's mean, variance and zero rate, the genes' correlations, and the depths."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from scipy.stats import rankdata, wasserstein_distance

CORRELATED_GENES = 200
"""The most expressed genes of the training cells: correlations of rare ones are noise."""


def gene_moments(counts: sp.csr_matrix) -> dict[str, Float[np.ndarray, " genes"]]:
    """Per gene: log1p of mean and of variance of raw counts, so that a few strong genes do not decide; share of 0."""
    mean = np.asarray(counts.mean(axis=0), dtype=np.float64).ravel()
    squares = counts.astype(np.float64)
    squares.data **= 2
    variance = np.maximum(np.asarray(squares.mean(axis=0)).ravel() - mean**2, 0)
    nonzero = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
    return {
        "mean": np.log1p(mean),
        "variance": np.log1p(variance),
        "zero_rate": 1 - nonzero / counts.shape[0],
    }


def gene_fits(candidate: sp.csr_matrix, real: sp.csr_matrix) -> dict[str, float]:
    """{"mean_pearson", "mean_spearman", "mean_slope", "mean_error", "variance_...", "zero_rate_..."} over genes.

    slope: of the candidate's on the real cells', least squares; error: mean absolute. NaN where one is constant.
    """
    found, theirs = {}, gene_moments(real)
    for name, ours in gene_moments(candidate).items():
        true = theirs[name]
        found[f"{name}_pearson"] = pearson(ours, true)
        found[f"{name}_spearman"] = pearson(rankdata(ours), rankdata(true))
        found[f"{name}_slope"] = slope(ours, true)
        found[f"{name}_error"] = float(np.abs(ours - true).mean())
    return found


def correlation_fits(candidate: Float[np.ndarray, "n genes"], real: Float[np.ndarray, "m genes"]) -> dict[str, float]:
    """Gene-gene correlations over cells, of log-normalised values: mean |difference| over pairs, and how the pairs'
    correlations correlate. Genes that are constant in either set are left out; NaN where fewer than 3 are left."""
    varies = np.minimum(candidate.std(axis=0), real.std(axis=0)) > 1e-9  # a constant may be so but for rounding
    if varies.sum() < 3:
        return {"correlation_error": np.nan, "correlation_pearson": np.nan}
    pairs = np.triu_indices(int(varies.sum()), 1)
    ours, true = (np.corrcoef(values[:, varies], rowvar=False)[pairs] for values in (candidate, real))
    return {"correlation_error": float(np.abs(ours - true).mean()), "correlation_pearson": pearson(ours, true)}


def depth_fits(candidate: sp.csr_matrix, real: sp.csr_matrix) -> dict[str, float]:
    """1-Wasserstein distance of log10(depth + 1), and the ratio of the median depths (NaN where the real one is 0)."""
    ours, true = (np.asarray(counts.sum(axis=1), dtype=np.float64).ravel() for counts in (candidate, real))
    median = float(np.median(true))
    return {
        "depth_distance": float(wasserstein_distance(np.log10(ours + 1), np.log10(true + 1))),
        "depth_ratio": float(np.median(ours)) / median if median > 0 else np.nan,
    }


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """NaN where either is constant, but for rounding."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 1e-12 else np.nan


def slope(y: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> float:
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x)) if x @ x > 1e-12 else np.nan
