"""scVI, MAGIC and ALRA beside the plain baselines: what they see and say, and what is said where one is missing."""

import importlib.util
import io
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from rich.console import Console
from scipy.stats import nbinom

from mdsc.data.tokenizers import make_tokenizer
from mdsc.errors import UserError
from mdsc.evaluation import optional_baselines
from mdsc.evaluation.alra_baseline import alra, chosen_rank
from mdsc.evaluation.inpaint import HeldOutCells, ModelPredictor, score_inpainting
from mdsc.evaluation.negative_binomial import fitted_dispersions, token_masses
from mdsc.evaluation.optional_baselines import check_optional, fit_optional, optional_fits
from mdsc.evaluation.predictor import AskedCells, PointPredictor, TrainingCells
from mdsc.evaluation.table import scores_table
from mdsc.evaluation.visible_matrix import FilledMatrix, VisibleMatrix

GENES = 60
V = 20


def simulated(num_cells, seed):
    """Two types of cells, each with genes of its own."""
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(0).gamma(0.8, 1.5, (2, GENES))
    return rng.poisson(rates[rng.integers(2, size=num_cells)] * rng.gamma(5, 0.2, (num_cells, 1))).astype(np.int32)


TRAIN, TEST = simulated(160, 1), simulated(30, 2)


def training(tokenizer="count"):
    return TrainingCells.of(sp.csr_matrix(TRAIN), make_tokenizer(tokenizer, V))


def held_out(counts=TEST):
    return HeldOutCells(sp.csr_matrix(counts), np.arange(GENES))


def uniform(gene_ids, *others):
    return torch.zeros(*gene_ids.shape, V)


def installed(name):
    module, package = optional_baselines.PACKAGES[name]
    return pytest.param(
        name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{package} is not installed")
    )


@pytest.fixture
def short_training(monkeypatch):
    pytest.importorskip("scvi", exc_type=ImportError)
    monkeypatch.setattr("mdsc.evaluation.scvi_training.MAX_EPOCHS", 3)
    monkeypatch.setattr("mdsc.evaluation.scvi_predictors.REFINE_STEPS", 5)


@pytest.mark.parametrize("num_tokens", [8, 32])
def test_masses_of_tokens_are_those_of_scipys_negative_binomial(num_tokens):
    tokenizer = make_tokenizer("count", num_tokens)
    mean = np.array([1e-5, 0.02, 0.7, 3.0, 14.0, 90.0, 2000.0])[:, None].repeat(4, axis=1).ravel()
    theta = np.array([0.05, 0.8, 5.0, 300.0] * 7)
    masses = token_masses(mean[None], theta, tokenizer)
    np.testing.assert_allclose(masses.sum(axis=1), 1, atol=1e-12)

    def of_scipy(mean):
        law = nbinom(theta[:, None], (theta / (theta + mean))[:, None])
        above = np.concatenate([law.sf(np.array(tokenizer.edges) - 1), np.zeros((len(mean), 1))], axis=1)
        return above[:, :-1] - above[:, 1:]

    expected = of_scipy(mean)
    np.testing.assert_allclose(masses, expected, rtol=1e-4, atol=2e-8)
    # Where little is left for the bins it is shared out without the integral; that is told in logarithms, too.
    small = (expected > 1e-25) & (expected < 1e-7)
    assert small.any()
    np.testing.assert_allclose(np.log(masses[small]), np.log(expected[small]), atol=0.5)
    # Several draws of the mean: a mixture.
    mixture = token_masses(np.stack([mean, 3 * mean]), theta, tokenizer)
    np.testing.assert_allclose(mixture, (expected + of_scipy(3 * mean)) / 2, rtol=1e-3, atol=1e-6)


def test_dispersions_are_found_again_and_shared_where_a_gene_is_silent():
    rng = np.random.default_rng(0)
    means = rng.gamma(2, 1, (1500, 1)) * np.array([4.0, 4.0, 4.0, 1e-4])
    theta = np.array([0.3, 3.0, 1.0, 1.0])
    counts = rng.poisson(rng.gamma(theta, means / theta)).astype(np.int32)
    scored = rng.random(counts.shape) < 0.5
    found = fitted_dispersions(means, counts, scored)
    np.testing.assert_allclose(np.log(found[:3]), np.log(theta[:3]), atol=0.4)
    assert 0.3 < found[3] < 3
    # What is not scored has no say.
    assert (fitted_dispersions(means, np.where(scored, counts, 99), scored) == found).all()


def test_alra_is_the_hand_made_case():
    """Low rank, threshold, then each gene's mean and deviation of the nonzero values, gene by gene."""
    rng = np.random.default_rng(0)
    u, v = rng.random((40, 1)) + 0.5, np.linspace(0.5, 2, 12)[None]
    values = (u @ v).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = 0
    left, singular, right = np.linalg.svd(values, full_matrices=False)
    low = (left[:, :2] * singular[:2]) @ right[:2]
    expected = np.zeros_like(values)
    for gene in range(12):
        column, x = low[:, gene], values[:, gene]
        kept = column > abs(np.quantile(column, 0.001))
        scale = x[x > 0].std(ddof=1) / column[kept].std(ddof=1)
        new = np.where(kept, (column - column[kept].mean()) * scale + x[x > 0].mean(), 0).clip(0)
        expected[:, gene] = np.where((new == 0) & (x > 0), x, new)
    np.testing.assert_allclose(alra(values, rank=2), expected, atol=1e-4)
    assert (expected == 0).any()
    assert (alra(values, rank=2)[values > 0] > 0).all()


def test_alra_takes_the_ranks_whose_gaps_stand_out():
    noise = np.linspace(5, 3, 96)
    noise += np.random.default_rng(0).normal(0, 1e-3, 96)
    assert chosen_rank(np.array([90.0, 60.0, 30.0, 12.0, *np.sort(noise)[::-1]])) == 4


def test_the_depth_of_a_cell_is_that_of_its_visible_genes_over_their_share():
    train = TrainingCells.of(sp.csr_matrix([[4, 0, 6, 2]]), make_tokenizer("count"))
    hidden = np.array([[True, False, False, False]])
    asked = AskedCells(sp.csr_matrix([[0, 3, 0, 0], [0, 0, 0, 0]]), np.array([[False, True, False, True], [True] * 4]))
    matrix = VisibleMatrix(train, hidden, asked)
    np.testing.assert_allclose(matrix.depth, [8 / 0.75, 3 / 0.5, 1])  # a cell without counts gets one
    expected = np.log1p(1e4 * np.array([[0, 0, 6, 2], [0, 3, 0, 0], [0] * 4]) / matrix.depth[:, None])
    np.testing.assert_allclose(matrix.log_normalised.toarray(), expected, rtol=1e-5)


def test_the_way_back_to_counts_is_right_on_average_for_each_gene():
    """A matrix that says nothing but each gene's mean: denoised values come back as the gene's mean count at a cell's
    depth, though four of five counts were hidden and taken for zeros."""
    hidden = np.random.default_rng(0).random(TRAIN.shape) < 0.8
    seen = np.random.default_rng(1).random(TEST.shape) >= 0.8
    asked = AskedCells(sp.csr_matrix(np.where(seen, TEST, 0)), seen)
    matrix = VisibleMatrix(training(), hidden, asked)
    denoised = np.repeat(matrix.log_normalised.toarray().mean(axis=0, keepdims=True), len(TRAIN) + len(TEST), axis=0)
    expected = matrix.filled(denoised).expected
    assert expected.shape == TEST.shape
    np.testing.assert_allclose(expected.mean(axis=0).sum(), TEST.mean(axis=0).sum(), rtol=0.12)
    common = TRAIN.mean(axis=0) > 1
    np.testing.assert_allclose(expected.mean(axis=0)[common], TRAIN.mean(axis=0)[common], rtol=0.25)


def recorded(counts, name, tokenizer="count", repeats=1):
    """(what a row says of each hiding of these cells, its scores)"""
    said, train = {}, training(tokenizer)

    def kept(row, predictor):
        class Recorder:
            pass

        def record(self, cells):
            method = "expected_counts" if isinstance(predictor, PointPredictor) else "log_probs"
            said.setdefault(row, []).append(np.array(getattr(predictor, method)(cells)))
            return said[row][-1]

        setattr(Recorder, "expected_counts" if isinstance(predictor, PointPredictor) else "log_probs", record)
        return Recorder()

    def wrapped(row, fit):
        return lambda train, hidden, asked: kept(row, fit(train, hidden, asked))

    result = score_inpainting(
        held_out(counts),
        train.tokenizer,
        (0.5,),
        train=train,
        baselines={},
        fitted={row: kept(row, predictor) for row, predictor in fit_optional([name], train).items()},
        fit_to_asked={row: wrapped(row, fit) for row, fit in optional_fits([name]).items()},
        seed=4,
        repeats=repeats,
    )
    return said, {row: scores.metrics() for row, scores in result.scores[0.5].items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [installed("alra"), installed("magic"), installed("scvi")])
def test_hidden_counts_never_matter_bit_for_bit(name, request):
    if name == "scvi":
        request.getfixturevalue("short_training")
    from mdsc.diffusion.corruption import hide_fraction

    index = torch.arange(len(TEST))
    hidden = hide_fraction(torch.zeros(TEST.shape, dtype=torch.bool), 0.5, seed=4, cell_index=index).numpy()
    flipped = np.where(hidden, 9 + 2 * TEST[::-1], TEST).astype(np.int32)
    said, metrics = recorded(TEST, name)
    said_flipped, metrics_flipped = recorded(flipped, name)
    assert said.keys() == {"alra": {"alra"}, "magic": {"magic"}, "scvi": {"scvi", "scvi_refined", "scvi_masked"}}[name]
    for row in said:
        np.testing.assert_array_equal(said[row], said_flipped[row], err_msg=row)
        assert metrics[row]["mae_log1p"] < metrics_flipped[row]["mae_log1p"] - 0.5  # the truth did change


@pytest.mark.parametrize("name", [installed("alra"), installed("magic")])
@pytest.mark.filterwarnings("ignore")
def test_a_method_that_denoises_a_matrix_tells_types_of_cells_apart(name):
    """Better than each gene's mean: two types of cells have genes of their own."""
    _, metrics = recorded(TEST, name)
    mean = np.broadcast_to(TRAIN.mean(axis=0, dtype=np.float32), TEST.shape)
    same = score_inpainting(
        held_out(), make_tokenizer("count", V), (0.5,), fitted={"mean": FilledMatrix(np.array(mean))}, seed=4
    )
    assert metrics[name]["spearman_nonzero"] > same.scores[0.5]["mean"].metrics()["spearman_nonzero"] + 0.015
    assert np.isnan(metrics[name]["nll"])


@pytest.mark.filterwarnings("ignore")
def test_scvi_has_laws_of_counts_and_points_of_other_tokens(short_training):
    said, metrics = recorded(TEST, "scvi")
    for row, (log_p,) in said.items():
        np.testing.assert_allclose(np.exp(log_p.astype(np.float64)).sum(axis=-1), 1, atol=1e-5)
        assert np.isfinite(metrics[row]["nll"]), row
    _, metrics = recorded(TEST, "scvi", tokenizer="rank")
    assert all(np.isnan(row["nll"]) and np.isfinite(row["mae_log1p"]) for row in metrics.values())


def test_each_hiding_has_a_fit_of_its_own_to_the_very_cells_that_are_scored():
    asked_of, evidence_of = [], []

    class Answer:
        def expected_counts(self, cells):
            evidence_of.append(cells)
            return np.ones(cells.counts.shape, dtype=np.float32)

    def fit(train, hidden, asked):
        asked_of.append(asked)
        assert hidden.shape == TRAIN.shape
        return Answer()

    arguments = {"train": training(), "baselines": {}, "fit_to_asked": {"answer": fit}}
    score_inpainting(held_out(), make_tokenizer("count", V), (0.5,), repeats=2, **arguments)
    for asked, evidence in zip(asked_of, evidence_of, strict=True):
        assert (asked.counts.toarray() == evidence.counts.numpy()).all()
        assert (asked.visible == evidence.visible.numpy()).all()
    assert (asked_of[0].visible != asked_of[1].visible).any()


def test_points_are_null_in_json_and_not_applicable_in_the_table():
    tokenizer = make_tokenizer("count", V)
    point = FilledMatrix(np.full(TEST.shape, 1.5, dtype=np.float32))
    model = ModelPredictor(uniform, tokenizer)
    result = score_inpainting(held_out(), tokenizer, (0.5,), model=model, train=training(), fitted={"point": point})
    scores = json.loads(json.dumps(result.to_json(), allow_nan=False))["baselines"]["point"]["0.5"]
    assert scores["nll"] is None
    assert scores["zero_rate_error"] is None
    assert scores["mae_log1p"] > 0
    assert result.comparison(0.5)[0] != "point"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(scores_table(result))
    rows = [line.split() for line in console.export_text().splitlines()]
    [row] = [row for row in rows if row[:1] == ["point"]]
    assert row[1] == "n/a"
    assert rows.index(row) > max(i for i, other in enumerate(rows) if {"model", "knn", "majority"} & set(other))
    alone = score_inpainting(held_out(), tokenizer, (0.5,), model=model, fitted={"point": point})
    assert alone.comparison(0.5) is None


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    check_optional(["alra"])
    monkeypatch.setattr(optional_baselines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scvi needs scvi-tools.*pip install 'mdsc\[baselines\]'"):
        check_optional(["scvi"])
    with pytest.raises(UserError, match="there is no 'macig'"):
        check_optional(["macig"])
