"""What no model can beat on simulated cells: the posterior over type, drug and depth given the visible counts.

Given these three the counts of a cell are independent negative binomials (`Truth.log_pmf`), so that the law of a hidden
count given the visible ones is a mixture over them. Depth is integrated over a grid.
"""

import numpy as np
from jaxtyping import Bool, Float64, Integer

from mdsc.data.tokenizers import CountTokenizer
from mdsc.prep.simulated_cells import Truth

DEPTHS = 121
"""Points of the grid, over 4.5 standard deviations of the log depth either way: .03 apart at a spread of .4."""
KEPT = 12.0
"""Hypotheses whose log weight is this much below the best one are left out: a share of 1e-5 each."""


def oracle_nll(
    truth: Truth,
    tokenizer: CountTokenizer,
    counts: Integer[np.ndarray, "cells genes"],
    hidden: Bool[np.ndarray, "cells genes"],
) -> Float64[np.ndarray, " cells"]:
    """Mean over each cell's hidden genes of -log p(token | visible counts), in nats: the `nll` of the scores of models.

    Visible are counts and not tokens alone, as for the models, which read both.
    """
    depths, log_weight = posterior(truth, counts, ~hidden)
    probabilities = truth.probabilities.reshape(-1, counts.shape[1])
    edges = np.array([*tokenizer.edges, np.inf])
    token = np.searchsorted(edges, counts, side="right") - 1
    nll = np.empty(len(counts))
    for cell, weights in enumerate(log_weight):
        kept = np.flatnonzero(weights > weights.max() - KEPT)
        genes = np.flatnonzero(hidden[cell])
        means = depths[kept // len(probabilities), None] * probabilities[kept % len(probabilities)][:, genes]
        low, high = edges[token[cell, genes]], edges[token[cell, genes] + 1]
        log_p = log_probability(low, high, means, truth.config.dispersion) + weights[kept, None]
        best = log_p.max(axis=0)
        mixed = best + np.log(np.exp(log_p - best).sum(axis=0))
        nll[cell] = -mixed.mean()
    return nll


def posterior(
    truth: Truth, counts: Integer[np.ndarray, "cells genes"], visible: Bool[np.ndarray, "cells genes"]
) -> tuple[Float64[np.ndarray, " depths"], Float64[np.ndarray, "cells hypotheses"]]:
    """The grid of depths, and the log posterior weight of (depth, type, drug), the last one running fastest."""
    config = truth.config
    probabilities = truth.probabilities.reshape(-1, counts.shape[1])
    standard = np.linspace(-4.5, 4.5, DEPTHS)
    depths = config.median_depth * np.exp(config.depth_spread * standard)
    seen, seen_counts = visible.astype(np.float64), counts * visible.astype(np.float64)
    parts = []
    for place, depth in enumerate(depths):
        means = depth * probabilities
        log_fail = np.log(config.dispersion / (config.dispersion + means))
        log_rate = np.log(means / (config.dispersion + means))
        # What does not depend on the hypothesis is left out.
        parts.append(config.dispersion * seen @ log_fail.T + seen_counts @ log_rate.T - standard[place] ** 2 / 2)
    log_weight = np.concatenate(parts, axis=1)
    best = log_weight.max(axis=1, keepdims=True)
    return depths, log_weight - best - np.log(np.exp(log_weight - best).sum(axis=1, keepdims=True))


def log_probability(
    low: Float64[np.ndarray, " genes"],
    high: Float64[np.ndarray, " genes"],
    means: Float64[np.ndarray, "hypotheses genes"],
    dispersion: float,
) -> Float64[np.ndarray, "hypotheses genes"]:
    """log p(low <= count < high) of negative binomials."""
    from scipy.special import gammaln
    from scipy.stats import nbinom

    rest = dispersion + means
    log_p = gammaln(low + dispersion) - gammaln(low + 1) - gammaln(dispersion)
    log_p = log_p + dispersion * np.log(dispersion / rest) + low * np.log(means / rest)
    if (wide := high - low > 1).any():
        # Of the upper tails: beyond a high mean's bins the lower ones are all 1.
        tails = [nbinom.sf(edge[wide] - 1, dispersion, dispersion / rest[:, wide]) for edge in (low, high)]
        log_p[:, wide] = np.log(np.maximum(tails[0] - tails[1], 1e-300))
    return log_p
