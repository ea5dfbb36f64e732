"""What the benchmark of likelihoods holds against the model: laws of counts that sum to one, and fit."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import nbinom

from mdsc.data.tokenizers import make_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from count_baselines import depth_losses, gene_marginal, negative_binomial


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """600 cells x 3 genes: means in proportion 1, 4, 0.2 to a log-normal depth, theta 2."""
    rng = np.random.default_rng(0)
    depth = np.exp(rng.normal(0, 0.8, size=(600, 1)))
    return nbinom.rvs(2, 2 / (2 + depth * [1, 4, 0.2]), random_state=rng)


def test_negative_binomials_sum_to_one(counts):
    every = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for_three = negative_binomial(counts // 3, every, by_depth=False)
    assert np.exp(-3 * for_three).sum() == pytest.approx(1, abs=2e-3)


def test_depth_helps_where_there_is_some(counts):
    train, test = counts[:400], counts[400:]
    alone, by_depth = (negative_binomial(train, test, by_depth=by_depth).mean() for by_depth in (False, True))
    assert by_depth < alone - 0.1
    assert np.isfinite(negative_binomial(train * [1, 1, 0], test, by_depth=False)).all()  # a gene that was never seen


def test_the_gene_marginal_is_a_law_of_counts(counts):
    tokenizer = make_tokenizer("count", 12)  # exact to 5, then bins
    train = sp.csr_matrix(counts[:, :1].astype(np.int32))
    every = sp.csr_matrix(np.arange(200_000, dtype=np.int32)[:, None])
    p = np.exp(-gene_marginal(train, every, tokenizer))
    assert p.sum() == pytest.approx(1, abs=0.01)
    assert p[0] == pytest.approx((counts[:, 0] == 0).mean(), abs=0.02)


def test_the_law_of_the_depth_sums_to_one(counts):
    every = np.zeros((3000, 3), dtype=int)
    every[:, 0] = np.arange(3000)
    assert np.exp(-3 * depth_losses(counts, every[1:])).sum() == pytest.approx(1, abs=0.02)
