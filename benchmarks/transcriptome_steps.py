"""One step of the benchmark over a whole transcriptome, in a process of its own: its memory and time are nobody else's.

python benchmarks/transcriptome_steps.py --method scvi --folder runs/transcriptome/pbmc3k --seed 0 --json scvi.json
"""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
import tyro
from real_cells import split_paths

from mdsc.atomic import replacing
from mdsc.checkpoint import load_checkpoint
from mdsc.data.genes import GeneVocabulary
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Evidence, hide
from mdsc.evaluation.baselines import BASELINES
from mdsc.evaluation.cell_sources import read_h5ad
from mdsc.evaluation.inpaint import HeldOutCells, InpaintResult, ModelPredictor, score_inpainting
from mdsc.evaluation.optional_baselines import fit_optional, optional_fits
from mdsc.evaluation.predictor import PointPredictor, Predictor, TrainingCells
from mdsc.evaluation.scvi_predictors import ScviLaws
from mdsc.sampling.loaded_model import predictor
from mdsc.sampling.pass_size import PassOptions, pass_size

RATIO = 0.8
PLAIN = "plain"
"""All plain baselines in one process."""


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    method: Literal["model", "plain", "scvi", "scvi_masked", "magic", "alra"]
    folder: Path
    """Where the cells of the benchmark are."""
    checkpoint: Path
    """The model, whose tokenizer is everybody's."""
    seed: int
    json: Path


@dataclass(frozen=True)
class Cells:
    vocabulary: GeneVocabulary
    tokenizer: Tokenizer
    train: sp.csr_matrix
    test: sp.csr_matrix

    def training(self) -> TrainingCells:
        return TrainingCells.of(self.train, self.tokenizer)

    def held_out(self, counts: sp.csr_matrix) -> HeldOutCells:
        return HeldOutCells(counts, np.arange(len(self.vocabulary)))

    def everything(self, seed: int):
        """Evidence of all cells, training cells as well, with the share hidden: what is filled in against the clock."""
        for batch in self.held_out(sp.vstack([self.test, self.train], format="csr")).batches(self.tokenizer):
            hidden = hide_fraction(batch.is_pad, RATIO, seed=seed, cell_index=batch.cell_index)
            yield hide(batch, hidden)


def main(config: StepConfig) -> None:
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(config.checkpoint)
    paths = split_paths(config.folder, {})
    vocabulary = ShardFolder.open(paths.shards).vocabulary
    train, test = (read_h5ad(path, vocabulary, most=10**9) for path in (paths.train, paths.test))
    order = np.arange(len(vocabulary))
    cells = Cells(vocabulary, checkpoint.tokenizer, train.restricted(order), test.restricted(order))
    if config.method == "model":
        size = pass_size(checkpoint, len(vocabulary), PassOptions())
        model = ModelPredictor(predictor(checkpoint, size.genes), checkpoint.tokenizer)
        result = {"impute": {"model": seconds_to_impute(model, cells, config.seed)}}
        held_out = cells.held_out(cells.test)
        scored = score_inpainting(held_out, cells.tokenizer, (RATIO,), model=model, seed=config.seed, calibrated=False)
    else:
        result, scored = baseline(config, cells)
    result["scores"] = by_predictor(scored)
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with replacing(config.json) as beside:
        beside.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def baseline(config: StepConfig, cells: Cells) -> tuple[dict, InpaintResult]:
    """Fit and score; what is fitted to the cells that are asked about is so once, on the held-out cells."""
    train, fit_seconds, impute = cells.training(), {}, {}
    fitted, fits = {}, {}
    if config.method == "scvi":
        with Clock() as clock:
            fitted = fit_optional(["scvi"], train, seed=config.seed)
        for name in fitted:
            fit_seconds[name] = clock.seconds
        impute["scvi"] = seconds_to_impute(fitted["scvi"], cells, config.seed)
    elif config.method != PLAIN:
        name = config.method
        fit = optional_fits(["scvi" if name == "scvi_masked" else name], seed=config.seed)[name]
        fits = {name: timed(fit, fit_seconds, name)}
    scored = score_inpainting(
        cells.held_out(cells.test),
        cells.tokenizer,
        (RATIO,),
        train=train,
        baselines=BASELINES if config.method == PLAIN else {},
        fitted=fitted,
        fit_to_asked=fits,
        seed=config.seed,
        calibrated=False,
        say=lambda text: print(text, flush=True),
    )
    return {"fit": fit_seconds, "impute": impute}, scored


def by_predictor(result: InpaintResult) -> dict[str, dict]:
    """{"model" or baseline: metrics}"""
    report = result.to_json()
    scores = {name: of_ratio[f"{RATIO:g}"] for name, of_ratio in report["baselines"].items()}
    if report["model"]:
        scores["model"] = report["model"][f"{RATIO:g}"]
    return scores


def seconds_to_impute(predictor: Predictor | PointPredictor, cells: Cells, seed: int) -> float:
    """CPU seconds for the expected counts of the hidden positions of all cells, hiding and tokenising included."""
    with Clock() as clock:
        for evidence in cells.everything(seed):
            expected_counts(predictor, evidence, cells.tokenizer)
    return clock.seconds


def expected_counts(predictor: Predictor | PointPredictor, evidence: Evidence, tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(predictor, ScviLaws):  # its means are at hand without the laws
        return predictor.posterior.means(evidence.counts.numpy().astype(np.int32), evidence.visible.numpy()).mean(0)
    if isinstance(predictor, PointPredictor):
        return predictor.expected_counts(evidence)
    table = tokenizer.decode_table(evidence.counts, evidence.visible).numpy()
    return np.einsum("cgv,cv->cg", np.exp(predictor.log_probs(evidence)), table.astype(np.float32))


def timed(fit: Callable, seconds: dict[str, float], name: str) -> Callable:
    def wrapped(*arguments):
        with Clock() as clock:
            predictor = fit(*arguments)
        seconds[name] = clock.seconds
        return predictor

    return wrapped


class Clock:
    """CPU seconds of this process: other work on the machine does not count."""

    def __enter__(self) -> "Clock":
        self._start = time.process_time()
        return self

    def __exit__(self, *failure) -> None:
        self.seconds = time.process_time() - self._start


if __name__ == "__main__":
    main(tyro.cli(StepConfig, description=__doc__))
