"""Plain ways to make cells from training cells: what generated cells are to be better than, and one oracle."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from numpy.random import Generator

LEAST_SHAPE = 1e-3


def training_cells(train: sp.csr_matrix, number: int, rng: Generator) -> sp.csr_matrix:
    """Training cells themselves: as near to the truth as can be, and nothing new. Each is taken once as long as there
    are some left, so that a classifier does not recognise them by their doubles."""
    rounds = [rng.permutation(train.shape[0]) for _ in range(-(-number // train.shape[0]))]
    return train[np.concatenate(rounds)[:number]]


def independent_genes(train: sp.csr_matrix, number: int, rng: Generator) -> sp.csr_matrix:
    """Each gene's count of a training cell drawn for it alone: all genes' laws are right, and nothing between genes."""
    columns, num_cells = train.tocsc(), train.shape[0]
    rows, places, counts = [], [], []
    for gene in range(train.shape[1]):
        stored = columns.data[columns.indptr[gene] : columns.indptr[gene + 1]]
        drawn = rng.integers(num_cells, size=number)  # those below len(stored) stand for its nonzero counts
        has_any = np.flatnonzero(drawn < len(stored))
        rows.append(has_any)
        places.append(np.full(len(has_any), gene))
        counts.append(stored[drawn[has_any]])
    return _matrix(np.concatenate(counts), np.concatenate(rows), np.concatenate(places), (number, train.shape[1]))


def negative_binomial(train: sp.csr_matrix, number: int, rng: Generator) -> sp.csr_matrix:
    """Independent negative binomials at depths of training cells: mean = depth * the gene's share of all counts.

    The shape of each gene is by moments: over cells E[(x - m)^2 - m] = E[m^2] / shape, m being the cell's own mean;
    where there is no more variance than a Poisson law has, it is a Poisson law.
    """
    counts = train.astype(np.float64)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    total = np.asarray(counts.sum(axis=0)).ravel()
    share = total / max(total.sum(), 1)
    squares = counts.copy()
    squares.data **= 2
    # E[(x - m)^2] = E[x^2] - 2 E[x m] + E[m^2], with m = share * depth
    of_x, of_xm = np.asarray(squares.mean(axis=0)).ravel(), share * (counts.T @ depth) / len(depth)
    of_m2 = share**2 * (depth**2).mean()
    excess = of_x - 2 * of_xm + of_m2 - share * depth.mean()
    shape = np.where(excess > 0, of_m2 / np.maximum(excess, 1e-300), np.inf)
    drawn, blocks = depth[rng.integers(len(depth), size=number)], []
    finite = np.isfinite(shape)
    for rows in np.array_split(np.arange(number), -(-number // 256)):
        mean = drawn[rows, None] * share
        scale = np.clip(shape[finite], LEAST_SHAPE, 1e6)
        mean[:, finite] *= rng.gamma(scale, 1 / scale, (len(rows), int(finite.sum())))
        blocks.append(sp.csr_matrix(rng.poisson(mean).astype(np.int32)))
    return sp.vstack(blocks, format="csr")


def _matrix(data: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((data, (rows, columns)), shape=shape)


BASELINES: dict[str, Callable[[sp.csr_matrix, int, Generator], sp.csr_matrix]] = {
    "training_cells": training_cells,
    "negative_binomial": negative_binomial,
    "independent_genes": independent_genes,
}
ORACLE = "training_cells"
