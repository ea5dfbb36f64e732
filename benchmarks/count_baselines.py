"""Plain laws of counts, fitted on training cells: each gene by itself, with or without the cell's depth.

All give -log p(counts of a cell) / genes, in nats, of whole test cells.
"""

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy.special import gammaln

from mdsc.data.tokenizers import CountTokenizer
from mdsc.evaluation.marginals import gene_frequencies
from mdsc.evaluation.predictor import TrainingCells, whole_cell_tokens

DISPERSIONS = np.geomspace(0.02, 1000, 36)
"""theta of the variance mean + mean^2 / theta; each gene has the best of these on the training cells."""
LEAST_MEAN = 0.1
"""Counts that are added to a gene's sum, which may be 0 on the training cells."""


def negative_binomial(
    train: Int[np.ndarray, "train genes"], test: Int[np.ndarray, "test genes"], *, by_depth: bool
) -> Float64[np.ndarray, " test"]:
    """Independent negative binomials. by_depth: a gene's mean is its share times the cell's total count, which is then
    known; else the mean is the gene's own."""
    size_train, size_test = (
        cells.sum(axis=1, keepdims=True).clip(min=1) if by_depth else np.ones((len(cells), 1))
        for cells in (train, test)
    )
    rate = (train.sum(axis=0) + LEAST_MEAN) / size_train.sum()
    best = np.full(train.shape[1], np.inf)
    theta = np.empty(train.shape[1])
    for one in DISPERSIONS:
        loss = _losses(train, size_train * rate, np.full(train.shape[1], one)).sum(axis=0)
        theta[loss < best] = one
        best = np.minimum(best, loss)
    return _losses(test, size_test * rate, theta).mean(axis=1)


def _losses(counts: np.ndarray, mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    log_p = gammaln(counts + theta) - gammaln(theta) - gammaln(counts + 1)
    return -(log_p + theta * np.log(theta / (theta + mean)) + counts * np.log(mean / (theta + mean)))


def gene_marginal(train, test, tokenizer: CountTokenizer) -> Float64[np.ndarray, " test"]:
    """Each gene's own frequencies of the tokenizer's bins, shrunk, and counts within a bin as the model has them.
    train, test: CSR."""
    log_p = np.log(gene_frequencies(TrainingCells.of(train, tokenizer)))
    tokens = whole_cell_tokens(test, tokenizer)
    losses = -log_p[np.arange(tokens.shape[1]), tokens]
    counts = torch.from_numpy(test.toarray().astype(np.int32))
    return (losses + tokenizer.log_count_given_token(counts).numpy()).mean(axis=1)


def depth_losses(
    train: Int[np.ndarray, "train genes"], test: Int[np.ndarray, "test genes"]
) -> Float64[np.ndarray, " test"]:
    """-log p(total count) of a log-normal law that is fitted on the training cells, per gene: what a model that is told
    the total count is spared."""
    log_train, log_test = (np.log(cells.sum(axis=1).clip(min=1)) for cells in (train, test))
    mean, sd = log_train.mean(), log_train.std()
    density = 0.5 * ((log_test - mean) / sd) ** 2 + np.log(sd * np.sqrt(2 * np.pi)) + log_test
    return density / train.shape[1]
