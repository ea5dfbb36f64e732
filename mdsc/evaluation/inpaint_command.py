"""`mdsc evaluate inpaint`, `python evaluate.py inpaint`: a checkpoint scored beside the plain baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdsc.checkpoint import Checkpoint, checkpoint_name, given_or_newest, weights_digest
from mdsc.config.flags import parse_flags
from mdsc.config.schema import TrainConfig
from mdsc.data.shard_mixture import open_shards
from mdsc.errors import UserError
from mdsc.evaluation.cell_sources import SourceCells, read_h5ad, read_shards
from mdsc.evaluation.command_output import plain_console, versions, write_scores
from mdsc.evaluation.inpaint import HeldOutCells, ModelPredictor, check_mask_ratio, score_inpainting
from mdsc.evaluation.optional_baselines import check_optional, fit_optional, optional_fits, packages_of
from mdsc.evaluation.plots import save_report
from mdsc.evaluation.predictor import TrainingCells
from mdsc.evaluation.report import check_report_path
from mdsc.evaluation.table import calibration_table, scores_table, verdicts
from mdsc.evaluation.unmasking import unmask_one_cell
from mdsc.sampling.conditions import KnownConditions
from mdsc.sampling.loaded_model import opened, predictor
from mdsc.sampling.pass_size import PassOptions, pass_size

MOST_TRAINING_COUNTS = 40_000_000
"""Training cells times genes that the baselines are fitted on at most: about 2 GiB of memory."""


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    checkpoint: str | None = None
    """Checkpoint folder, or user/name[@revision] of the hub; by default the newest run in runs/."""
    input: Path | None = None
    """h5ad file of held-out cells with raw counts; by default the held-out cells of the run's shards."""
    train: Path | None = None
    """h5ad file of training cells, for the baselines; by default the training cells of the run's shards."""
    layer: str | None = None
    """Where the counts of both files are: the name of a layer, or "raw"; by default X."""
    mask_ratios: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Shares of each cell's genes to hide, between 0 and 1."""
    json: Path | None = None
    """File for all scores, as JSON."""
    report: Path | None = None
    """HTML file that holds all of it, with pictures, to be read anywhere; or a PNG file for a picture alone."""
    seed: int = 0
    """Seeds what is hidden."""
    repeats: int = 1
    """Times that each cell is hidden and scored."""
    max_cells: int = 2000
    """Cells scored at most, drawn evenly."""
    pooled_steps: int = 3000
    """Optimiser steps of the attention-free `pooled` baseline; 0 leaves it out."""
    baselines: tuple[str, ...] = ()
    """Published methods beside the plain baselines: scvi, magic, alra (pip install 'mdsc[baselines]'). They take
    minutes; scvi trains a network, and another one for each mask ratio and repeat."""


def main(argv: Sequence[str]) -> None:
    inpaint(parse_flags(InpaintConfig, argv, __doc__, prog="mdsc evaluate inpaint"))


def inpaint(config: InpaintConfig) -> dict:
    """Score, print the table, write what was asked for; gives what the JSON holds."""
    console = plain_console()
    _check(config)
    folder = given_or_newest(config.checkpoint, console.print)
    checkpoint = opened(folder)
    test, train = _read_cells(config, checkpoint, console.print)

    places = np.sort(test.places) if train is None else np.intersect1d(test.places, train.places)
    if len(places) == 0:
        raise UserError(f"--train: {train.name} has no gene in common with {test.name}; name the genes alike.")
    known = KnownConditions(checkpoint.model)
    cells = HeldOutCells(test.restricted(places), places, known.of_labels(test.conditions))
    train_cells = None if train is None else TrainingCells.of(train.restricted(places), checkpoint.tokenizer)
    console.print(_summary(test, train, places))
    fitted = {}
    if train is not None and config.pooled_steps:
        from mdsc.evaluation.pooled import fit_pooled  # the trainer, and accelerate with it

        console.print(f"training pooled, the cell-state pathway alone, for {config.pooled_steps:,} steps")
        fitted["pooled"] = fit_pooled(
            train.in_vocabulary(places, len(checkpoint.vocabulary)),
            checkpoint.vocabulary,
            checkpoint.config or TrainConfig(),
            max_steps=config.pooled_steps,
        )

    if train_cells is not None and config.baselines:
        console.print(f"fitting {', '.join(config.baselines)} beside the plain baselines")
        fitted |= fit_optional(config.baselines, train_cells, seed=config.seed)

    size = pass_size(checkpoint, len(places), PassOptions())
    predict, device = predictor(checkpoint, size.genes), checkpoint.model.device
    result = score_inpainting(
        cells,
        checkpoint.tokenizer,
        config.mask_ratios,
        model=ModelPredictor(predict, checkpoint.tokenizer, device, size.cells),
        train=train_cells,
        fitted=fitted,
        fit_to_asked=optional_fits(config.baselines, seed=config.seed),
        seed=config.seed,
        repeats=config.repeats,
        say=console.print,
    )
    console.print(scores_table(result), soft_wrap=False)
    console.print(calibration_table(result), soft_wrap=False)
    for sentence in verdicts(result):
        console.print(sentence)

    scores = {**result.to_json(), "settings": _settings(config, folder, checkpoint, test, train, places)}
    write_scores(scores, config.json, console.print)
    if config.report is not None:
        unmasking = unmask_one_cell(
            predict, checkpoint.tokenizer, cells, max(config.mask_ratios), seed=config.seed, device=device
        )
        title = f"{checkpoint_name(folder)}: {cells.counts.shape[0]:,} held-out cells x {len(places):,} genes"
        pictures = {"metrics_file": folder / "metrics.jsonl", "unmasking": unmasking, "title": title}
        if config.report.suffix.lower() == ".png":
            save_report(config.report, result, **pictures)
        else:
            from mdsc.evaluation.inpaint_report import inpaint_report

            inpaint_report(result, scores["settings"], **pictures).save(config.report)
        console.print(f"wrote {config.report}")
    return scores


def _check(config: InpaintConfig) -> None:
    """What can be told before anything is read."""
    if not config.mask_ratios:
        raise UserError("--mask-ratios: give at least one, e.g. 0.8.")
    for ratio in config.mask_ratios:
        check_mask_ratio(ratio)
    for flag, number in (("--repeats", config.repeats), ("--max-cells", config.max_cells)):
        if number < 1:
            raise UserError(f"{flag} is {number}; it takes 1 or more.")
    check_optional(config.baselines)
    if config.pooled_steps < 0:
        raise UserError(f"--pooled-steps is {config.pooled_steps}; it takes 0 (leave pooled out) or more.")
    check_report_path(config.report, [".png", ".html"])


def _read_cells(config: InpaintConfig, checkpoint: Checkpoint, say) -> tuple[SourceCells, SourceCells | None]:
    """Cells to score, and training cells if there are any."""
    vocabulary = checkpoint.vocabulary
    conditions = tuple(checkpoint.model.config.condition_levels or {})
    data_dir = None if checkpoint.config is None else Path(checkpoint.config.data.dir)
    shards = open_shards(data_dir) if data_dir is not None and data_dir.exists() else None

    if config.input is not None:
        test = read_h5ad(config.input, vocabulary, layer=config.layer, conditions=conditions, most=config.max_cells)
    elif shards is not None:
        split = shards.held_out_split
        say(f"--input is not given: taking the {split} cells of {shards.path}")
        test = read_shards(shards, split, vocabulary, conditions=conditions, most=config.max_cells)
    else:
        raise UserError(f"--input is not given, and the run's shards ({data_dir}) are not there; give --input.")

    most = max(2, MOST_TRAINING_COUNTS // len(test.places))
    if config.train is not None:
        return test, read_h5ad(config.train, vocabulary, layer=config.layer, most=most)
    if shards is not None:
        say(f"--train is not given: baselines are fitted on the train cells of {shards.path}")
        return test, read_shards(shards, "train", vocabulary, most=most)
    say("no baselines: --train is not given, and the run's shards are not there. A score alone says little.")
    return test, None


def _summary(test: SourceCells, train: SourceCells | None, places: np.ndarray) -> str:
    number = test.counts.shape[0]
    drawn = f" (of {test.cells_in_source:,})" if number < test.cells_in_source else ""
    lines = [f"scoring {number:,} cells{drawn} x {len(places):,} genes of {test.name}"]
    if train is not None:
        lines.append(f"baselines are fitted on {train.counts.shape[0]:,} cells of {train.name}")
    if unknown := test.unknown_genes:
        some = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        lines.append(f"not scored: {len(unknown):,} genes that are not in the model's vocabulary ({some})")
    if lacking := len(test.places) - len(places):
        lines.append(f"not scored: {lacking:,} genes that the training cells lack")
    return "\n".join(lines)


def _settings(
    config: InpaintConfig,
    folder: Path,
    checkpoint: Checkpoint,
    test: SourceCells,
    train: SourceCells | None,
    places: np.ndarray,
) -> dict:
    return {
        "checkpoint": checkpoint_name(folder),
        "weights_sha256": weights_digest(folder),
        "input": test.name,
        "train": None if train is None else train.name,
        "mask_ratios": list(config.mask_ratios),
        "seed": config.seed,
        "repeats": config.repeats,
        "baselines": list(config.baselines),
        "cells": test.counts.shape[0],
        "training_cells": 0 if train is None else train.counts.shape[0],
        "genes": len(places),
        "genes_not_in_vocabulary": len(test.unknown_genes),
        "tokenizer": {"name": checkpoint.tokenizer.name, "num_tokens": checkpoint.tokenizer.num_tokens},
        "versions": versions("torch", "numpy", "scikit-learn", *packages_of(config.baselines)),
    }
