"""The harness: what predictors get to see, what is scored, and what is written down."""

import io
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from rich.console import Console

from mdsc.data.batch import batch_from_csr
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import hide
from mdsc.errors import UserError
from mdsc.evaluation import inpaint
from mdsc.evaluation.baselines import BASELINES
from mdsc.evaluation.inpaint import HeldOutCells, InpaintResult, ModelPredictor, score_inpainting
from mdsc.evaluation.metrics import expression_deciles, score_cells
from mdsc.evaluation.plots import pit_histograms, save_report
from mdsc.evaluation.predictor import TrainingCells
from mdsc.evaluation.report import new_figure
from mdsc.evaluation.table import scores_table, verdicts
from mdsc.evaluation.unmasking import unmask_one_cell

GENES = 60
TOKENIZERS = [pytest.param(name, id=name) for name in ("rank", "quantile", "count")]


def simulated(num_cells, seed):
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(0).gamma(0.8, 1.5, (2, GENES))
    return rng.poisson(rates[rng.integers(2, size=num_cells)] * rng.gamma(5, 0.2, (num_cells, 1))).astype(np.int32)


TRAIN, TEST = simulated(120, 1), simulated(30, 2)


def held_out(counts=TEST):
    return HeldOutCells(sp.csr_matrix(counts), np.arange(GENES))


def training(tokenizer):
    return TrainingCells.of(sp.csr_matrix(TRAIN), tokenizer)


def toy_predict(gene_ids, tokens, counts, is_pad, categories, vectors):
    """A model that uses all that it is given."""
    num_tokens = 64 if tokens.max() > 60 else 52
    seen = tokens.clamp(max=num_tokens).float().mean(dim=1) + counts.sum(dim=1) / 100
    levels = torch.arange(num_tokens) * (1 + gene_ids[..., None] / 50 + seen[:, None, None] / 10)
    return -levels + sum(level.float() for level in categories.values()) if categories else -levels


class Spy:
    """Passes on what a predictor says, and keeps it."""

    def __init__(self, predictor):
        self.predictor, self.said, self.seen = predictor, [], []

    def log_probs(self, cells):
        self.seen.append(cells)
        self.said.append(np.array(self.predictor.log_probs(cells)))
        return self.said[-1]


def spies(tokenizer, ratio):
    """All baselines, fitted, and a model."""
    train_hidden = np.random.default_rng(3).random(TRAIN.shape) < ratio
    fitted = {name: kind.fit(training(tokenizer), train_hidden) for name, kind in BASELINES.items()}
    return {name: Spy(p) for name, p in {**fitted, "model": ModelPredictor(toy_predict, tokenizer)}.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_flipping_hidden_counts_changes_no_prediction(name):
    tokenizer = make_tokenizer(name)
    hidden = hide_fraction(
        torch.zeros(TEST.shape, dtype=torch.bool), 0.5, seed=4, cell_index=torch.arange(len(TEST))
    ).numpy()
    flipped = np.where(hidden, 7 + 3 * TEST[::-1], TEST).astype(np.int32)
    deciles = expression_deciles(TEST.mean(0))
    said, nll = [], []
    for counts in (TEST, flipped):
        predictors = spies(tokenizer, 0.5)
        scores = inpaint._score(predictors, held_out(counts), tokenizer, 0.5, [4], deciles)
        said.append({name: np.concatenate(spy.said) for name, spy in predictors.items()})
        nll.append({name: score.metrics()["nll"] for name, score in scores.items()})
    for predictor in said[0]:
        np.testing.assert_array_equal(said[0][predictor], said[1][predictor], err_msg=predictor)
        assert nll[1][predictor] > nll[0][predictor] + 0.1  # the truth did change


def test_all_predictors_get_the_same_evidence_and_hidden_counts_are_zero():
    tokenizer = make_tokenizer("rank")
    predictors = spies(tokenizer, 0.3)
    inpaint._score(predictors, held_out(), tokenizer, 0.3, [0], expression_deciles(TEST.mean(0)))
    [evidence] = predictors["model"].seen
    assert (evidence.counts[~evidence.visible] == 0).all()
    assert (evidence.visible.sum(1) == GENES - round(0.3 * GENES)).all()
    for spy in predictors.values():
        assert torch.equal(spy.seen[0].counts, evidence.counts)
        assert torch.equal(spy.seen[0].visible, evidence.visible)


def test_scores_are_those_of_the_metrics():
    tokenizer = make_tokenizer("rank")
    result = score_inpainting(held_out(), tokenizer, (0.5,), model=ModelPredictor(toy_predict, tokenizer), seed=5)
    batch = batch_from_csr(sp.csr_matrix(TEST), np.arange(GENES), tokenizer)
    hidden = hide_fraction(batch.is_pad, 0.5, seed=5, cell_index=batch.cell_index)
    evidence = hide(batch, hidden)
    log_p = torch.log_softmax(evidence.predict(toy_predict, tokenizer), dim=-1).numpy()
    table = tokenizer.decode_table(evidence.counts, evidence.visible).numpy()
    deciles = expression_deciles(TEST.mean(0))
    expected = score_cells(log_p, batch.tokens.numpy(), TEST, hidden.numpy(), table, deciles).metrics()
    assert result.scores[0.5]["model"].metrics() == pytest.approx(expected)


def test_batches_do_not_matter(monkeypatch):
    """A batch of the harness is a matter of memory."""
    tokenizer = make_tokenizer("count")

    def scores():
        model = ModelPredictor(toy_predict, tokenizer)
        result = score_inpainting(held_out(), tokenizer, (0.4,), model=model, train=training(tokenizer))
        return {name: scores.metrics() for name, scores in result.scores[0.4].items()}

    whole = scores()
    monkeypatch.setattr(inpaint, "MAX_LOGITS", 7 * GENES * 64)
    for name, metrics in scores().items():
        assert metrics == pytest.approx(whole[name], abs=1e-6), name


def test_a_pass_takes_as_many_cells_as_it_may():
    tokenizer, sizes = make_tokenizer("rank"), []

    def predict(gene_ids, *others):
        sizes.append(len(gene_ids))
        return toy_predict(gene_ids, *others)

    hidden = torch.rand(TEST.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    evidence = hide(batch_from_csr(sp.csr_matrix(TEST), np.arange(GENES), tokenizer), hidden)
    whole, parts = (ModelPredictor(predict, tokenizer, "cpu", most).log_probs(evidence) for most in (None, 7))
    assert sizes == [30, 7, 7, 7, 7, 2]
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_repeats_hide_other_positions_of_the_same_cells():
    tokenizer, model = make_tokenizer("rank"), Spy(ModelPredictor(toy_predict, make_tokenizer("rank")))
    one = score_inpainting(held_out(), tokenizer, (0.5,), model=model).scores[0.5]["model"]
    three = score_inpainting(held_out(), tokenizer, (0.5,), model=model, repeats=3).scores[0.5]["model"]
    assert (three.positions == 3 * one.positions).all()
    assert not torch.equal(model.seen[1].visible, model.seen[2].visible)
    assert three.metrics()["nll"] != one.metrics()["nll"]


def test_the_count_tokenizer_has_a_likelihood_of_counts():
    """A tokenizer of 8 tokens: nll of tokens plus what the bins leave open; the other tokenizers have none."""
    tokenizer = make_tokenizer("count", 8)

    def uniform(gene_ids, *others):
        return torch.zeros(*gene_ids.shape, 8)

    metrics = score_inpainting(held_out(), tokenizer, (0.5,), model=ModelPredictor(uniform, tokenizer)).scores[0.5]
    metrics = metrics["model"].metrics()
    hidden = hide_fraction(torch.zeros(TEST.shape) > 0, 0.5, seed=0, cell_index=torch.arange(len(TEST)))
    within = tokenizer.log_count_given_token(torch.as_tensor(TEST))[hidden].mean().item()
    assert metrics["nll"] == pytest.approx(np.log(8), abs=1e-5)
    assert metrics["nll_counts"] == pytest.approx(np.log(8) + within, abs=1e-5)
    assert within > 0


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.2, 0.001])
def test_a_mask_ratio_outside_the_open_interval_names_the_flag(ratio):
    with pytest.raises(UserError, match="--mask-ratios"):
        score_inpainting(held_out(), make_tokenizer("rank"), (ratio,))


@pytest.fixture(scope="module")
def result():
    tokenizer = make_tokenizer("rank")
    model = ModelPredictor(toy_predict, tokenizer)
    return score_inpainting(held_out(), tokenizer, (0.2, 0.8), model=model, train=training(tokenizer))


def test_json_has_the_agreed_shape(result):
    report = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert report.keys() == {"model", "baselines", "comparison"}
    assert report["model"].keys() == {"0.2", "0.8"}
    assert report["baselines"].keys() == BASELINES.keys()
    names = {"nll", "accuracy", "accuracy_nonzero", "mae_log1p", "spearman_nonzero", "zero_rate_error", "crps"}
    for scores in [report["model"], *report["baselines"].values()]:
        for ratio in ("0.2", "0.8"):
            assert names <= scores[ratio].keys()
            assert names <= scores[ratio]["standard_error"].keys()
            assert len(scores[ratio]["zero_rate"]["predicted"]) == 10
    nll = {name: scores["0.8"]["nll"] for name, scores in report["baselines"].items()}
    comparison = report["comparison"]["0.8"]
    assert comparison["best_baseline"] == min(nll, key=nll.get)
    assert comparison["nll_difference"] == pytest.approx(report["model"]["0.8"]["nll"] - min(nll.values()))
    assert comparison["model_wins"] is False


def test_table_is_sorted_and_says_who_wins(result):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(scores_table(result))
    lines = console.export_text().splitlines()
    rows = [line.split() for line in lines if "±" in line and "standard error" not in line]
    assert len(rows) == 2 * (1 + len(BASELINES))
    first = [float(row[2 if row[0].endswith("%") else 1]) for row in rows[:6]]
    assert first == sorted(first)
    assert rows[0][0] == "20%"
    assert "*" in rows[0][:6]
    assert max(map(len, lines)) <= 120
    assert "BEATS the model by" in verdicts(result)[0]
    # And the other way round: the best baseline, called the model, against the rest.
    best = result.comparison(0.2)[0]
    renamed = {"model" if name == best else name: s for name, s in result.scores[0.2].items() if name != "model"}
    assert "the model beats the best baseline" in verdicts(InpaintResult({0.2: renamed}))[0]


def test_pit_is_drawn_for_each_predictor_and_group_of_positions(result):
    figure = new_figure(6.0, 4.0)
    pit_histograms(figure, result, ["model", "gene_marginal"])
    assert [axes.get_title() for axes in figure.axes] == ["model", "gene marginal", "", ""]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert np.mean(heights) == pytest.approx(1)  # a density over [0, 1]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["density, all hidden", "density, 1 or more expected"]


def test_report_is_drawn_with_and_without_a_run(result, tmp_path):
    tokenizer = make_tokenizer("rank")
    lines = [{"step": step, "nll": 1 / step, "validation_nll_at_0.5": None if step < 3 else 0.5} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    unmasking = unmask_one_cell(toy_predict, tokenizer, held_out(), 0.8, num_steps=6)
    assert unmasking.counts.shape == (7, GENES)
    assert unmasking.visible[-1].all()
    assert unmasking.visible[0].sum() == GENES - round(0.8 * GENES)
    given = unmasking.visible[0]
    assert (unmasking.counts[:, given] == unmasking.truth[given]).all()
    save_report(tmp_path / "a.png", result, metrics_file=tmp_path / "metrics.jsonl", unmasking=unmasking, title="T")
    save_report(tmp_path / "b.png", result, metrics_file=tmp_path / "missing.jsonl")
    for name in ("a.png", "b.png"):
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 30_000
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "metrics.jsonl"}
