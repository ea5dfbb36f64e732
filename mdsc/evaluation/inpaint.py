"""The harness: hide part of the held-out cells' counts, ask the model and the baselines for them, score both alike.

Counts are hidden in count space; only then is what is left tokenised. Model and baselines get the same `Evidence`, in
which hidden counts are zeros, and are scored on the same hidden positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Int

from mdsc.data.batch import CellBatch, batch_from_csr
from mdsc.data.tokenizers import CountTokenizer, Tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Evidence, Predict, hide
from mdsc.diffusion.losses import log_probs
from mdsc.errors import UserError
from mdsc.evaluation.baselines import BASELINES
from mdsc.evaluation.metrics import CellScores, expression_deciles, nll_difference, score_cells, score_points
from mdsc.evaluation.predictor import (
    AskedCells,
    Baseline,
    FitToAsked,
    LogProbs,
    PointPredictor,
    Predictor,
    TrainingCells,
)
from mdsc.sampling.conditions import CellConditions

MODEL = "model"
MAX_LOGITS = 2**22
"""Log-probabilities (cells * genes * V) at once: 16 MiB, of which scoring makes some ten copies in float64."""


@dataclass(frozen=True)
class HeldOutCells:
    """Cells to score, over genes of the vocabulary alone."""

    counts: sp.csr_matrix
    """(cells, genes) raw counts."""
    gene_index: Int[np.ndarray, " genes"]
    """Place of each column in the vocabulary."""
    conditions: CellConditions | None = None
    """None leaves them unknown to the model."""

    def batch(self, rows: slice, tokenizer: Tokenizer) -> CellBatch:
        batch = batch_from_csr(self.counts[rows], self.gene_index, tokenizer, first_cell=rows.start)
        return batch if self.conditions is None else replace(batch, **self.conditions.block(rows))

    def batches(self, tokenizer: Tokenizer) -> Iterator[CellBatch]:
        size = max(1, MAX_LOGITS // (len(self.gene_index) * tokenizer.num_tokens))
        for first in range(0, self.counts.shape[0], size):
            yield self.batch(slice(first, first + size), tokenizer)


@dataclass(frozen=True)
class ModelPredictor:
    """A model as a predictor, on the device where it is."""

    predict: Predict
    tokenizer: Tokenizer
    device: torch.device | str = "cpu"
    cells_at_once: int | None = None
    """Of a pass of the model; by default all that it is asked about."""

    @torch.inference_mode()
    def log_probs(self, cells: Evidence) -> LogProbs:
        logits = (
            part.to(self.device).predict(self.predict, self.tokenizer)
            for part in cells.split(self.cells_at_once or len(cells))
        )
        return np.concatenate([log_probs(some).float().cpu().numpy() for some in logits])


@dataclass(frozen=True)
class InpaintResult:
    """Scores of the model ("model") and of each baseline, by mask ratio."""

    scores: dict[float, dict[str, CellScores]]

    def to_json(self) -> dict:
        """{"model": {ratio: metrics}, "baselines": {name: {ratio: metrics}}, "comparison": {ratio: ...}}; NaN is null.

        Metrics have their names of `metrics`, "standard_error" (bootstrap over cells) under the same names, the
        "zero_rate" by decile of gene expression and "calibration" (see `mdsc.evaluation.calibration`). The comparison
        is of the model with the baseline of lowest nll.
        """
        report: dict = {MODEL: {}, "baselines": {}, "comparison": {}}
        for ratio, by_name in self.scores.items():
            for name, scores in by_name.items():
                place = report[MODEL] if name == MODEL else report["baselines"].setdefault(name, {})
                predicted, observed = scores.zero_rates()
                place[f"{ratio:g}"] = {
                    **_finite(scores.metrics()),
                    "standard_error": _finite(scores.standard_errors),
                    "zero_rate": {"predicted": _finite(predicted), "observed": _finite(observed)},
                    "calibration": _calibration(scores),
                }
            if comparison := self.comparison(ratio):
                name, difference, error = comparison
                report["comparison"][f"{ratio:g}"] = {
                    "best_baseline": name,
                    "nll_difference": difference,
                    "standard_error": _finite([error])[0],
                    "model_wins": difference < 0,
                }
        return report

    def comparison(self, ratio: float) -> tuple[str, float, float] | None:
        """(best baseline, the model's nll less that baseline's, its standard error, paired over cells)."""
        return self._comparisons[ratio]

    @cached_property
    def _comparisons(self) -> dict[float, tuple[str, float, float] | None]:
        return {ratio: _comparison(by_name) for ratio, by_name in self.scores.items()}


def score_inpainting(
    cells: HeldOutCells,
    tokenizer: Tokenizer,
    mask_ratios: Sequence[float],
    *,
    model: Predictor | None = None,
    train: TrainingCells | None = None,
    baselines: Mapping[str, type[Baseline]] = BASELINES,
    fitted: Mapping[str, Predictor | PointPredictor] | None = None,
    fit_to_asked: Mapping[str, FitToAsked] | None = None,
    seed: int = 0,
    repeats: int = 1,
    calibrated: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> InpaintResult:
    """Score at each mask ratio, on the same hidden positions for all.

    train: cells that the baselines are fitted on, same genes; without them there are no baselines.
    fitted: further baselines, which serve all mask ratios as they are.
    fit_to_asked: further ones, which are fitted to the cells that they will be asked about, for each hiding of them.
    seed: what is hidden is a function of (seed, place of the cell, place of the gene).
    repeats: how many times each cell is hidden and scored, with seed, seed + 1, ....
    calibrated: score calibration as well, which takes as long as all other scores.
    """
    mean_count = np.asarray(cells.counts.mean(axis=0)).ravel() if train is None else train.mean_count
    deciles = expression_deciles(mean_count)
    result = {}
    for ratio in mask_ratios:
        check_mask_ratio(ratio, len(cells.gene_index))
        predictors: dict[str, Predictor | PointPredictor] = {} if model is None else {MODEL: model}
        if train is not None:
            hidden = _hidden_in_training(train, ratio, seed)
            say(f"{ratio:.0%} hidden: fitting {', '.join(baselines)}")
            predictors |= {name: kind.fit(train, hidden) for name, kind in baselines.items()}
        predictors |= fitted or {}
        say(f"{ratio:.0%} hidden: scoring")
        seeds = range(seed, seed + repeats)
        result[ratio] = _score(predictors, cells, tokenizer, ratio, seeds, deciles, calibrated)
        if train is not None and fit_to_asked:
            for one in seeds:
                asked = _asked(cells, tokenizer, ratio, one)
                for name, fit in fit_to_asked.items():
                    say(f"{ratio:.0%} hidden: fitting and scoring {name}")
                    predictor = {name: fit(train, hidden, asked)}
                    scores = _score(predictor, cells, tokenizer, ratio, [one], deciles, calibrated)[name]
                    result[ratio][name] = result[ratio][name] + scores if name in result[ratio] else scores
    return InpaintResult(result)


def check_mask_ratio(ratio: float, num_genes: int | None = None) -> None:
    if not 0 < ratio < 1:
        raise UserError(f"--mask-ratios: {ratio:g} is not between 0 and 1; 0.8 hides 80% of each cell's genes.")
    if num_genes is not None and not 0 < round(ratio * num_genes) < num_genes:
        raise UserError(f"--mask-ratios: {ratio:g} of {num_genes} genes hides none or all of them; take another.")


def _asked(cells: HeldOutCells, tokenizer: Tokenizer, ratio: float, seed: int) -> AskedCells:
    """All cells with the counts hidden that `_score` hides."""
    counts, visible = [], []
    for batch in cells.batches(tokenizer):
        evidence = hide(batch, hide_fraction(batch.is_pad, ratio, seed=seed, cell_index=batch.cell_index))
        counts.append(sp.csr_matrix(evidence.counts.numpy()))
        visible.append(evidence.visible.numpy())
    return AskedCells(sp.vstack(counts, format="csr"), np.concatenate(visible))


def _score(
    predictors: Mapping[str, Predictor | PointPredictor],
    cells: HeldOutCells,
    tokenizer: Tokenizer,
    ratio: float,
    seeds: Sequence[int],
    deciles: Int[np.ndarray, " genes"],
    calibrated: bool = True,
) -> dict[str, CellScores]:
    parts: dict[str, list[CellScores]] = {name: [] for name in predictors}
    for batch in cells.batches(tokenizer):
        is_likelihood = isinstance(tokenizer, CountTokenizer)
        within = tokenizer.log_count_given_token(batch.counts).numpy() if is_likelihood else None
        repeated: dict[str, CellScores] = {}
        for seed in seeds:
            hidden = hide_fraction(batch.is_pad, ratio, seed=seed, cell_index=batch.cell_index)
            evidence = hide(batch, hidden)
            table = tokenizer.decode_table(evidence.counts, evidence.visible).numpy()
            for name, predictor in predictors.items():
                true = batch.counts.numpy()
                if isinstance(predictor, PointPredictor):
                    scores = score_points(predictor.expected_counts(evidence), true, hidden.numpy(), deciles)
                else:
                    log_p, tokens = predictor.log_probs(evidence), batch.tokens.numpy()
                    scores = score_cells(
                        log_p, tokens, true, hidden.numpy(), table, deciles, within, calibrated=calibrated
                    )
                repeated[name] = repeated[name] + scores if name in repeated else scores
        for name, scores in repeated.items():
            parts[name].append(scores)
    return {name: CellScores.concatenated(batches) for name, batches in parts.items()}


def _hidden_in_training(train: TrainingCells, ratio: float, seed: int) -> np.ndarray:
    """Hidden positions of the training cells, keyed by negative places: no cell shares the draw of a held-out one."""
    is_pad = torch.zeros(train.counts.shape, dtype=torch.bool)
    place = -1 - torch.arange(len(train.counts))
    parts = [
        hide_fraction(some, ratio, seed=seed, cell_index=index)
        for some, index in zip(is_pad.split(256), place.split(256), strict=True)
    ]
    return torch.cat(parts).numpy()


def _comparison(by_name: Mapping[str, CellScores]) -> tuple[str, float, float] | None:
    nll = {name: scores.metrics()["nll"] for name, scores in by_name.items()}
    nll = {name: value for name, value in nll.items() if np.isfinite(value)}
    if nll.pop(MODEL, None) is None or not nll:
        return None
    best = min(nll, key=nll.get)
    return best, *nll_difference(by_name[MODEL], by_name[best])


def _calibration(scores: CellScores) -> dict:
    values, errors = scores.calibration_metrics
    return {group: {**_finite(values[group]), "standard_error": _finite(errors[group])} for group in values}


def _finite(values):
    """As plain numbers, with None for NaN, which JSON does not have."""
    if isinstance(values, dict):
        return {name: _finite([value])[0] for name, value in values.items()}
    return [_finite(value) if np.ndim(value) else float(value) if np.isfinite(value) else None for value in values]
