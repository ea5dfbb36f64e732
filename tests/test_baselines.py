"""The baselines on simulated cells of which the true law is known: they are honest, and in the order they should be."""

import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import poisson

from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.evaluation.baselines import BASELINES
from mdsc.evaluation.marginals import gene_frequencies
from mdsc.evaluation.metrics import expression_deciles, score_cells
from mdsc.evaluation.predictor import TrainingCells
from mdsc.evaluation.tilting import Tilt

NAMES = [pytest.param(name, id=name) for name in BASELINES]
GENES, V = 100, 20


class World:
    """Four types of cells with their own gene rates, log-normal depths, Poisson counts."""

    def __init__(self, num_types, num_train=300, num_test=60, depth_spread=0.5):
        rng = np.random.default_rng(0)
        base = rng.gamma(0.7, 1.2, GENES)
        self.rates = base * np.exp(rng.normal(0, 1.0, (num_types, GENES)) * (num_types > 1))
        num_cells = num_train + num_test
        self.types = rng.integers(num_types, size=num_cells)
        self.depth = np.exp(rng.normal(0, depth_spread, num_cells))
        counts = rng.poisson(self.rates[self.types] * self.depth[:, None]).astype(np.int32)
        self.train, self.test = counts[:num_train], counts[num_train:]
        self.test_depth = self.depth[num_train:]
        self.tokenizer = make_tokenizer("count", V)

    def true_log_probs(self, counts, visible):
        """p(token | visible counts, depth) by Bayes' rule over the types, from the rates and the cell's depth."""
        rates = self.rates[None] * self.test_depth[:, None, None]
        log_type = (poisson.logpmf(counts[:, None], rates) * visible[:, None]).sum(-1)
        weight = np.exp(log_type - log_type.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        edges = np.array([*self.tokenizer.edges, np.inf])
        law = np.diff(poisson.cdf(edges - 1, rates[..., None]), axis=-1)
        return np.log(np.maximum((weight[:, :, None, None] * law).sum(1), 1e-30)).astype(np.float32)


def hide(counts, ratio, first=0):
    is_pad = torch.zeros(counts.shape, dtype=torch.bool)
    return hide_fraction(is_pad, ratio, seed=1, cell_index=first + torch.arange(len(counts))).numpy()


def training_cells(counts, tokenizer):
    return TrainingCells.of(sp.csr_matrix(counts), tokenizer)


def score(log_probs, counts, hidden, tokenizer):
    tokens = TrainingCells.of(sp.csr_matrix(counts), tokenizer).tokens
    visible = torch.as_tensor(~hidden)
    table = tokenizer.decode_table(torch.as_tensor(counts), visible).numpy()
    return score_cells(log_probs, tokens, counts, hidden, table, expression_deciles(counts.mean(0)))


@pytest.fixture(scope="module")
def world():
    return World(num_types=4)


def all_scores(world, ratio):
    train = training_cells(world.train, world.tokenizer)
    train_hidden, hidden = hide(world.train, ratio, first=1000), hide(world.test, ratio)
    given = np.where(hidden, 0, world.test)
    predictions = {name: kind.fit(train, train_hidden).predict(given, ~hidden) for name, kind in BASELINES.items()}
    predictions["truth"] = world.true_log_probs(given, ~hidden)
    return {name: score(p, world.test, hidden, world.tokenizer) for name, p in predictions.items()}


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_order_where_there_are_cell_types(world, ratio):
    nll = {name: scores.metrics()["nll"] for name, scores in all_scores(world, ratio).items()}
    assert nll["truth"] < min(nll["svd"], nll["knn"])
    assert max(nll["svd"], nll["knn"]) < nll["gene_marginal_depth"] - 0.05
    assert nll["gene_marginal_depth"] < nll["gene_marginal"] - 0.005
    assert nll["gene_marginal"] < nll["majority"] - 0.1


def test_nothing_to_learn_but_depth():
    """One type of cell: depth helps, and nothing that looks further is fooled. (The truth knows the depth exactly; a
    tilted marginal stays a mixture over depths.)"""
    world = World(num_types=1)
    nll = {name: scores.metrics()["nll"] for name, scores in all_scores(world, 0.5).items()}
    assert nll["truth"] < nll["gene_marginal_depth"] < nll["truth"] + 0.07
    assert nll["gene_marginal_depth"] < nll["gene_marginal"] - 0.03
    assert nll["knn"] < nll["gene_marginal_depth"] + 0.005
    assert nll["svd"] < nll["gene_marginal_depth"] + 0.01


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
@pytest.mark.parametrize("name", NAMES)
def test_hidden_counts_of_test_cells_never_matter(world, name, tokenizer):
    """The callers zero the hidden counts; a baseline that looks at them all the same would be caught here."""
    tokenizer = make_tokenizer(tokenizer)
    baseline = BASELINES[name].fit(training_cells(world.train, tokenizer), hide(world.train, 0.5, first=1000))
    hidden = hide(world.test, 0.5)
    clean = baseline.predict(np.where(hidden, 0, world.test), ~hidden)
    assert clean.shape == (len(world.test), GENES, tokenizer.num_tokens)
    assert clean.dtype == np.float32
    assert np.isfinite(clean).all()
    np.testing.assert_allclose(np.exp(clean.astype(np.float64)).sum(-1), 1, atol=1e-5)
    # Cells do not depend on their company.
    alone = baseline.predict(np.where(hidden, 0, world.test)[3:4], ~hidden[3:4])
    np.testing.assert_allclose(alone[0], clean[3], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_cell_and_an_unseen_gene_are_predicted(world, name):
    train = world.train.copy()
    train[:, 7] = 0
    train[5] = 0
    baseline = BASELINES[name].fit(training_cells(train, world.tokenizer), hide(train, 0.5, first=1000))
    counts = world.test[:3].copy()
    counts[0] = 0
    visible = np.ones_like(counts, dtype=bool)
    visible[1] = False
    log_p = baseline.predict(np.where(visible, counts, 0), visible)
    assert np.isfinite(log_p).all()
    assert (log_p[:, 7].argmax(-1) == 0).all()


def test_pseudo_count_is_chosen_by_leaving_cells_out():
    """Few cells are shrunk, and the frequencies of many come through."""
    world = World(num_types=1, num_train=2000, depth_spread=0.01)
    true = np.exp(world.true_log_probs(world.test[:1], np.zeros((1, GENES), dtype=bool))[0])

    def excess(num_cells):
        train = training_cells(world.train[:num_cells], world.tokenizer)
        return float(-(true * np.log(gene_frequencies(train) / np.maximum(true, 1e-30))).sum(-1).mean())

    assert 0 < excess(2000) < 0.01 < excess(20) < 0.2


def test_tilt_finds_the_poisson_family():
    """Poisson counts of rate r_g exp(s): the tilt that makes them of those of rate r_g is a_t = t."""
    rng = np.random.default_rng(0)
    genes = rng.integers(30, size=40_000)
    rates = rng.gamma(2.0, 1.0, 30)
    s = rng.normal(0, 0.4, len(genes))
    tokens = np.minimum(rng.poisson(rates[genes] * np.exp(s)), 15)
    base = poisson.logpmf(np.arange(16), rates[:, None])
    tilt = Tilt.fit(base, s[:, None], genes, tokens)
    slopes = tilt.coefficients[0] - tilt.coefficients[0, 0]
    np.testing.assert_allclose(slopes[:7], np.arange(7), atol=0.35)
    expected = -poisson.logpmf(tokens, rates[genes] * np.exp(s)).mean()
    assert tilt.loss == pytest.approx(expected, abs=0.003)


def test_baselines_are_fast():
    """All five, fitted and applied, on as many cells as the demo has: seconds of one core."""
    rng = np.random.default_rng(0)
    train, test = rng.poisson(rng.gamma(0.3, 1.5, 765), (580, 765)), rng.poisson(rng.gamma(0.3, 1.5, 765), (40, 765))
    train, test = train.astype(np.int32), test.astype(np.int32)
    cells, hidden = training_cells(train, make_tokenizer("rank")), hide(test, 0.8)
    start = time.process_time()
    for kind in BASELINES.values():
        kind.fit(cells, hide(train, 0.8)).predict(np.where(hidden, 0, test), ~hidden)
    assert time.process_time() - start < 20
