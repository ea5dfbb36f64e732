"""The negative binomial law of counts as probabilities of the tokens of a `count` tokenizer.

NB(k; mu, theta) has mean mu and variance mu + mu^2 / theta.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer
from scipy.special import betainc, gammaln

from mdsc.data.tokenizers import CountTokenizer

EXACT_TAIL = 1e-6
"""Above this mass beyond the exact tokens, bins are integrated; below it a few terms say the same."""


def token_masses(
    mean: Float[np.ndarray, " positions"], dispersion: Float[np.ndarray, " positions"], tokenizer: CountTokenizer
) -> Float64[np.ndarray, "positions V"]:
    """P(token) under NB(mean, dispersion), each row summing to 1.

    Exact tokens by the recursion NB(k + 1) = NB(k) (k + theta) / (k + 1) mu / (mu + theta); bins by the incomplete beta
    function, P(X >= a) = I_{mu / (mu + theta)}(a, theta). Where nearly nothing is left for the bins, that function is
    spared: a bin then holds its first count times a geometric series, whose ratio is that of the first two counts.
    """
    edges = np.array(tokenizer.edges)
    widths = np.diff(edges)
    num_exact = int(np.argmax(widths != 1)) if (widths != 1).any() else len(widths)
    mean, theta = np.maximum(mean.astype(np.float64), 1e-12), dispersion.astype(np.float64)
    odds = mean / (mean + theta)
    log_stop = theta * np.log1p(-odds)
    masses = np.empty((len(mean), len(edges)))
    masses[:, 0] = np.exp(log_stop)
    for k in range(num_exact - 1):
        masses[:, k + 1] = masses[:, k] * ((k + theta) / (k + 1) * odds)
    for token in range(num_exact, len(edges)):
        first = edges[token]
        log_first = log_stop + gammaln(first + theta) - gammaln(theta) - gammaln(first + 1) + first * np.log(odds)
        ratio = np.minimum((first + theta) / (first + 1) * odds, 1 - 1e-9)
        width = widths[token] if token < len(widths) else np.inf
        masses[:, token] = np.exp(log_first) * (1 - ratio**width) / (1 - ratio)
    rows = np.flatnonzero(masses[:, :num_exact].sum(axis=1) < 1 - EXACT_TAIL)
    if len(rows):
        above = betainc(edges[num_exact:], theta[rows, None], odds[rows, None])
        masses[rows, num_exact:] = above - np.concatenate([above[:, 1:], np.zeros((len(rows), 1))], axis=1)
    return masses / masses.sum(axis=1, keepdims=True)


def fitted_dispersions(
    means: Float[np.ndarray, "cells genes"],
    counts: Integer[np.ndarray, "cells genes"],
    scored: Bool[np.ndarray, "cells genes"],
) -> Float64[np.ndarray, " genes"]:
    """theta of each gene of greatest likelihood, given the means of the positions (cells, genes) that are `scored`.

    Taken from a grid. A gene that is seen too seldom to tell keeps near the one of all genes together: the log has a
    Gaussian prior of standard deviation 1 about it.
    """
    grid = np.geomspace(0.02, 500, 24)
    log_likelihood = np.zeros((len(grid), means.shape[1]))
    for first in range(0, len(means), 256):
        rows = slice(first, first + 256)
        mean = np.maximum(means[rows].astype(np.float64), 1e-12)
        cell, gene = np.nonzero(scored[rows] & (counts[rows] > 0))
        x, mean_there = counts[rows][cell, gene].astype(np.float64), mean[cell, gene]
        for i, theta in enumerate(grid):
            zeros = -theta * np.log1p(mean / theta) * scored[rows]
            log_likelihood[i] += zeros.sum(axis=0)
            more = gammaln(x + theta) - gammaln(theta) + x * np.log(mean_there / (mean_there + theta))
            log_likelihood[i] += np.bincount(gene, weights=more, minlength=means.shape[1])
    log_grid = np.log(grid)
    centre = log_grid[log_likelihood.sum(axis=1).argmax()]
    posterior = log_likelihood - (log_grid[:, None] - centre) ** 2 / 2
    return grid[posterior.argmax(axis=0)]
