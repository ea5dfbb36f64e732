"""How far sampled cells are from real ones, of which none is a copy or has the same evidence.

All are distances: 0 is best, and finite numbers of cells keep every set above it, real cells too.
"""

import numpy as np
from jaxtyping import Bool, Float64, Integer

from mdsc.data.tokenizers import CountTokenizer
from mdsc.prep.simulated_cells import Truth

WIDTHS = (0.5, 1.0, 2.0)
"""Of the kernels, times the median distance of real cells."""
CORRELATED_GENES = 100
"""Those of highest mean count: of rare genes a few hundred cells tell no correlation."""


def distances(
    sampled: Integer[np.ndarray, "cells genes"],
    hidden: Bool[np.ndarray, "cells genes"],
    real: Integer[np.ndarray, "others genes"],
    truth: Truth | None,
    tokenizer,
) -> dict[str, float]:
    """hidden: what was drawn; of single genes these are scored alone, of whole cells evidence and draws together.

    mmd: squared maximum mean discrepancy of log1p(count). zero_rate: mean over genes of |share of zeros - that of real
    cells|. correlation: mean over pairs of genes of |difference| of Pearson's r of log1p(count). depth_sd: |difference|
    of the standard deviations of log1p(all counts). marginal_tv: mean over genes of the total variation between the
    frequencies of tokens and their exact law; only where the truth is known.
    """
    values, real_values = np.log1p(sampled), np.log1p(real)
    number = np.maximum(hidden.sum(axis=0), 1)
    zero_rate = ((sampled == 0) & hidden).sum(axis=0) / number
    genes = np.argsort(-real.mean(axis=0), kind="stable")[:CORRELATED_GENES]
    r, real_r = (correlations(of[:, genes])[np.triu_indices(len(genes), 1)] for of in (values, real_values))
    depth = [np.log1p(counts.sum(axis=1)).std() for counts in (sampled, real)]
    found = {
        "mmd": unbiased_mmd(values, real_values),
        "zero_rate": float(np.abs(zero_rate - (real == 0).mean(axis=0)).mean()),
        "correlation": float(np.abs(r - real_r).mean()),
        "depth_sd": float(abs(depth[0] - depth[1])),
    }
    if truth is None:
        return found
    assert isinstance(tokenizer, CountTokenizer)
    edges = np.array(tokenizer.edges)
    tokens = np.searchsorted(edges, sampled, side="right") - 1
    frequency = np.stack([((tokens == token) & hidden).sum(axis=0) / number for token in range(len(edges))], axis=1)
    return found | {"marginal_tv": float(0.5 * np.abs(frequency - token_law(truth, edges)).sum(axis=1).mean())}


def unbiased_mmd(x: Float64[np.ndarray, "cells genes"], y: Float64[np.ndarray, "others genes"]) -> float:
    """Squared, mean over RBF kernels of several widths; pairs of a cell with itself are left out, so that it may be
    below 0 (Gretton et al. 2012, "A kernel two-sample test", equation 3)."""
    of_real = squared_distances(y, y)
    scale = np.median(of_real[np.triu_indices(len(y), 1)])
    of_sampled, between = squared_distances(x, x), squared_distances(x, y)
    total = 0.0
    for width in WIDTHS:
        kernels = [np.exp(-d / (2 * width**2 * scale)) for d in (of_sampled, of_real, between)]
        within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
        total += within[0] + within[1] - 2 * kernels[2].mean()
    return float(total / len(WIDTHS))


def squared_distances(
    x: Float64[np.ndarray, "cells genes"], y: Float64[np.ndarray, "others genes"]
) -> Float64[np.ndarray, "cells others"]:
    return np.maximum((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T, 0)


def correlations(values: Float64[np.ndarray, "cells genes"]) -> Float64[np.ndarray, "genes genes"]:
    """Pearson's r; 0 for a gene that is the same in all cells."""
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(norm > 0, norm, 1)
    return scaled.T @ scaled


def token_law(truth: Truth, edges: Integer[np.ndarray, " tokens"]) -> Float64[np.ndarray, "genes tokens"]:
    """Law of each gene's token in a cell of which nothing is known: mean over types, drugs and depths."""
    from scipy.stats import nbinom

    config = truth.config
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)  # the log depth is normal
    probabilities = truth.probabilities.reshape(-1, config.num_genes)
    below = np.zeros((config.num_genes, len(edges)))  # p(count < edge)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        means = config.median_depth * np.exp(config.depth_spread * node) * probabilities[..., None]
        cdf = nbinom.cdf(edges - 1, config.dispersion, config.dispersion / (config.dispersion + means))
        below += weight * cdf.mean(axis=0)
    return np.diff(np.concatenate([below, np.ones((config.num_genes, 1))], axis=1), axis=1)
