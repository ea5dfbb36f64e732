"""Perturbations without cells: both heads and all baselines on real cells, every unit held out once.

    python benchmarks/perturbation.py --json perturbation.json --markdown docs/results/perturbation.md

Papalexi et al. 2021 (25 knocked-out genes, a fifth held out in each of five folds), the pilot of Adamson et al. 2016
(five genes, one held out at a time) and Kang et al. 2018 (interferon, one cell type's stimulated cells held out at a
time), where shared/data has them; and simulated cells of 86 perturbations. What is done already stays in --work-dir, so
that this can be stopped and started again.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from finished_steps import once
from perturbation_methods import HEADS, NUM_CELLS, of_json, scored
from perturbation_tasks import TASKS, TITLES
from result_tables import ResultTable, write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.evaluation.perturb_estimates import PerturbScores, pooled
from mdsc.evaluation.perturb_metrics import HIGHER_IS_BETTER
from mdsc.evaluation.perturb_table import HEADINGS, table_rows

INTRODUCTION = """
Perturbations of which no cell was trained on are predicted from control cells, and compared with the real ones. All
methods have the same folds, the same training cells and the same embeddings of genes (64 components of their GO terms);
the metrics are those of `evaluate.py perturb`. The settings of the heads are the same for all three data sets.
"""


@dataclass(frozen=True, kw_only=True)
class PerturbationConfig:
    only: tuple[Literal["papalexi", "adamson", "kang", "simulated"], ...] = tuple(TASKS)
    """Data sets."""
    heads: tuple[str, ...] = HEADS
    """What is trained, or how it predicts."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training and of prediction."""
    masked_seeds: tuple[int, ...] = (0,)
    """The same of the masked model, which takes some ten times as long."""
    gaussian_flags: str = (
        "--train.max-steps 400 --train.global-batch-size 128 --gaussian.width 128 --gaussian.num-layers 2 "
        "--data.validation-fraction 0.03"
    )
    """Flags of train.py for the Gaussian head: less of everything than for 60,000 cells. Its principal components are
    50, or one for 25 training cells where that is less."""
    masked_flags: str = "--train.max-steps 1200"
    """And for the masked model."""
    num_bootstrap: int = 2000
    """Resamples of the units."""
    work_dir: Path = Path("runs/perturbation")
    """Folder for runs and scores."""
    json: Path | None = None
    """File for all scores."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(PerturbationConfig, args=argv, description=__doc__)
    found = {name: _scores(options, name) for name in options.only}
    tables = [table for name, by_head in found.items() for table in _tables(name, by_head, options)]
    for table in tables:
        table.show()
    if options.json is not None:
        with replacing(options.json) as beside:
            kept = {
                name: {head: _joined(seeds).to_json() for head, seeds in row.items()} for name, row in found.items()
            }
            beside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if options.markdown is not None:
        write_markdown(options.markdown, "Perturbations without cells", INTRODUCTION.strip(), tables)


def _scores(options: PerturbationConfig, name: str) -> dict[str, dict[int, PerturbScores]]:
    """By head and seed, all folds pooled."""
    found: dict[str, dict[int, list[PerturbScores]]] = {head: {} for head in options.heads}
    for fold in TASKS[name]():
        folder = options.work_dir / fold.name.replace(" ", "-").replace("+", "")
        for head in options.heads:
            is_gaussian = head == HEADS[0]
            flags = options.gaussian_flags if is_gaussian else options.masked_flags
            for seed in options.seeds if is_gaussian else options.masked_seeds:
                settings = {"fold": fold.name, "head": head, "seed": seed, "flags": flags, "cells": NUM_CELLS}
                note = folder / f"{head.replace(', ', '-')}-{seed}.json"
                print(f"{fold.name}, {head}, seed {seed}", file=sys.stderr, flush=True)
                step = lambda: scored(fold, folder, seed, head, flags.split())  # noqa: B023, E731
                if is_gaussian and not note.is_file():
                    shutil.rmtree(folder / f"{head}-{seed}", ignore_errors=True)
                done = once(note, settings, step)
                found[head].setdefault(seed, []).append(of_json(done["result"], options.num_bootstrap))
    return {head: {seed: pooled(folds) for seed, folds in seeds.items()} for head, seeds in found.items() if seeds}


def _joined(seeds: dict[int, PerturbScores]) -> PerturbScores:
    """Each unit's value is its mean over seeds; intervals are over units."""
    runs = list(seeds.values())
    first = runs[0]
    values = {}
    for method, rows in first.values.items():
        values[method] = {}
        for metric in rows:
            stacked = np.stack([run.values[method][metric] for run in runs])
            known = np.isfinite(stacked)
            total = np.where(known, stacked, 0.0).sum(axis=0)
            values[method][metric] = np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
    return replace(first, values=values)


def _tables(name: str, by_head: dict[str, dict[int, PerturbScores]], options: PerturbationConfig) -> list[ResultTable]:
    joined = {head: _joined(seeds) for head, seeds in by_head.items()}
    rows = []
    for place, (head, scores) in enumerate(joined.items()):
        own, *baselines = table_rows(scores)  # a simulation's oracle stands between these
        spread = _spread(head, by_head[head])
        rows.insert(place, [f"**{own[0]}**", *own[1:], spread])
        if place == 0:
            rows += [[*row, ""] for row in baselines]
    units = next(iter(joined.values())).units
    note = (
        f"{len(units)} held-out units; each unit's value is its mean over seeds ("
        + "; ".join(f"{head}: {', '.join(map(str, seeds))}" for head, seeds in by_head.items())
        + f"), [95% bootstrap interval over units]. {NUM_CELLS} cells were predicted of each. The last column is the "
        "standard deviation of the mean PearsonDelta over seeds."
    )
    return [
        ResultTable(TITLES[name], ["method", *HEADINGS.values(), "sd over seeds"], rows, note),
        _comparison(name, joined),
    ]


def _spread(head: str, seeds: dict[int, PerturbScores]) -> str:
    means = [found.mean for run in seeds.values() if (found := run.estimate(head, "pearson_delta")) is not None]
    return f"{np.std(means, ddof=1):.4f}" if len(means) > 1 else ""


def _comparison(name: str, joined: dict[str, PerturbScores]) -> ResultTable:
    """Differences of each head from the baselines that it is to be as good as."""
    rows = []
    for head, scores in joined.items():
        for metric, baselines in (
            ("pearson_delta", ("perturbed_mean", "ridge")),
            ("e_distance", ("nearest_cells",)),
            ("mmd2", ("nearest_cells",)),
        ):
            for baseline in baselines:
                if baseline not in scores.values or (found := scores.difference(head, baseline, metric)) is None:
                    continue
                interval = found.interval or (float("nan"), float("nan"))
                low, high = interval if HIGHER_IS_BETTER[metric] else (-interval[1], -interval[0])
                verdict = "better" if low > 0 else "worse" if high < 0 else "no difference can be told"
                rows.append(
                    [
                        f"{head} - {baseline}",
                        HEADINGS[metric],
                        f"{found.mean:+.4f}",
                        f"[{interval[0]:+.4f}, {interval[1]:+.4f}]",
                        str(found.units),
                        verdict,
                    ]
                )
    columns = ["difference", "metric", "mean", "95% interval", "units", "the head is"]
    return ResultTable(f"{TITLES[name]}: heads less baselines", columns, rows, "Over the units where both are defined.")


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
