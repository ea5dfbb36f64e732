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
    means: Float[np.ndarray, "draws positions"],
    dispersion: Float[np.ndarray, " positions"],
    tokenizer: CountTokenizer,
) -> Float64[np.ndarray, "positions V"]:
    """P(token), the mean over draws of that under NB(mean, dispersion); each row sums to 1.

    Exact tokens by the recursion NB(k + 1) = NB(k) (k + theta) / (k + 1) mu / (mu + theta); bins by the incomplete beta
    function, P(X >= a) = I_{mu / (mu + theta)}(a, theta). Where nearly nothing is left for the bins, that function is
    spared: under the mean over draws of mu, a bin holds its first count times a geometric series, whose ratio is that
    of the first two counts.
    """
    edges = np.array(tokenizer.edges)
    widths = np.append(np.diff(edges), np.inf)
    num_exact = int(np.argmax(widths != 1))
    theta = dispersion.astype(np.float64)
    odds = [of_draw / (of_draw + theta) for of_draw in np.maximum(means.astype(np.float64), 1e-12)]
    masses = np.zeros((len(theta), len(edges)))
    for of_draw in odds:
        p = np.exp(theta * np.log1p(-of_draw))
        for k in range(num_exact):
            masses[:, k] += p
            p *= (k + theta) / (k + 1) * of_draw
    masses /= len(odds)

    mean = np.maximum(means.mean(axis=0, dtype=np.float64), 1e-12)
    of_mean = mean / (mean + theta)
    for token in range(num_exact, len(edges)):
        first = edges[token]
        log_first = gammaln(first + theta) - gammaln(theta) - gammaln(first + 1)
        log_first += theta * np.log1p(-of_mean) + first * np.log(of_mean)
        ratio = np.minimum((first + theta) / (first + 1) * of_mean, 1 - 1e-9)
        masses[:, token] = np.exp(log_first) * (1 - ratio ** widths[token]) / (1 - ratio)
    rows = np.flatnonzero(masses[:, :num_exact].sum(axis=1) < 1 - EXACT_TAIL)
    if len(rows):
        above = np.mean([betainc(edges[num_exact:], theta[rows, None], one[rows, None]) for one in odds], axis=0)
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
