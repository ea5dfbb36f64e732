"""How far sampled cells are from real ones, of which none is a copy or has the same evidence.

All are distances: 0 is best, and finite numbers of cells keep every set above it, real cells too.
"""

from functools import cache

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Integer

from mdsc.data.tokenizers import CountTokenizer, Tokenizer
from mdsc.evaluation.generation_distances import mmd2, squared_median
from mdsc.evaluation.generation_gene_fits import correlation_fits, depth_fits
from mdsc.prep.simulated_cells import Truth

CORRELATED_GENES = 100
"""Those of highest mean count: of rare genes a few hundred cells tell no correlation."""


def distances(
    sampled: Integer[np.ndarray, "cells genes"],
    hidden: Bool[np.ndarray, "cells genes"],
    real: Integer[np.ndarray, "others genes"],
    truth: Truth | None,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """hidden: what was drawn; of single genes these are scored alone, of whole cells evidence and draws together.

    mmd2: of log1p(count), unbiased. zero_rate_error: mean over genes of |share of zeros - that of real cells|.
    correlation_error: mean over pairs of genes of |difference| of Pearson's r of log1p(count). depth_distance:
    1-Wasserstein, of log10(depth + 1). marginal_tv: mean over genes of the total variation between the frequencies of
    tokens and their exact law; only where the truth is known.
    """
    values, real_values = np.log1p(sampled), np.log1p(real)
    number = np.maximum(hidden.sum(axis=0), 1)
    zero_rate = ((sampled == 0) & hidden).sum(axis=0) / number
    genes = np.argsort(-real.mean(axis=0), kind="stable")[:CORRELATED_GENES]
    found = {
        "mmd2": mmd2(values, real_values, squared_median(real_values)),
        "zero_rate_error": float(np.abs(zero_rate - (real == 0).mean(axis=0)).mean()),
        "correlation_error": correlation_fits(values[:, genes], real_values[:, genes])["correlation_error"],
        "depth_distance": depth_fits(sp.csr_matrix(sampled), sp.csr_matrix(real))["depth_distance"],
    }
    if truth is None:
        return found
    assert isinstance(tokenizer, CountTokenizer)
    edges = np.array(tokenizer.edges)
    tokens = np.searchsorted(edges, sampled, side="right") - 1
    frequency = np.stack([((tokens == token) & hidden).sum(axis=0) / number for token in range(len(edges))], axis=1)
    return found | {
        "marginal_tv": float(0.5 * np.abs(frequency - token_law(truth, tokenizer.edges)).sum(axis=1).mean())
    }


@cache
def token_law(truth: Truth, edges: tuple[int, ...]) -> Float64[np.ndarray, "genes tokens"]:
    """Law of each gene's token in a cell of which nothing is known: mean over types, drugs and depths."""
    from scipy.stats import nbinom

    config = truth.config
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)  # the log depth is normal
    probabilities = truth.probabilities.reshape(-1, config.num_genes)
    below = np.zeros((config.num_genes, len(edges)))  # p(count < edge)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        means = config.median_depth * np.exp(config.depth_spread * node) * probabilities[..., None]
        cdf = nbinom.cdf(np.array(edges) - 1, config.dispersion, config.dispersion / (config.dispersion + means))
        below += weight * cdf.mean(axis=0)
    return np.diff(np.concatenate([below, np.ones((config.num_genes, 1))], axis=1), axis=1)
