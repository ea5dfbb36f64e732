"""`mdsc evaluate generate`, `python evaluate.py generate`: generated cells beside real ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdsc.config.flags import parse_flags
from mdsc.errors import UserError
from mdsc.evaluation.cell_sources import SourceCells
from mdsc.evaluation.command_output import plain_console, versions, write_scores
from mdsc.evaluation.generation_cells import read_sets
from mdsc.evaluation.generation_distances import has_pot
from mdsc.evaluation.generation_scores import (
    LEAST_CELLS,
    QUICK,
    GenerationResult,
    score_generation,
)
from mdsc.evaluation.generation_table import generation_table, level_texts, verdicts
from mdsc.evaluation.report import check_report_path


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    real: Path
    """h5ad file of real cells with raw counts, which the model was not trained on."""
    generated: Path
    """h5ad file of generated cells, e.g. what sample.py --num-cells writes."""
    train: Path | None = None
    """h5ad file of the training cells: for the space, the baselines and the check for copies. By default a third of the
    real cells stand for them."""
    layer: str | None = None
    """Where the counts of the real and training cells are: the name of a layer, or "raw"; by default X."""
    by: str | None = None
    """Column of obs, e.g. drug: scores some metrics of each of its values too."""
    max_cells: int = 1000
    """Cells of each kind that are compared at most."""
    repeats: int = 5
    """Random cuts of the real cells into two halves."""
    seed: int = 0
    """Seeds the cuts, the draws and the baselines."""
    json: Path | None = None
    """File for all scores, as JSON."""
    report: Path | None = None
    """HTML file that holds all of it, with pictures, to be read anywhere."""


def main(argv: Sequence[str]) -> None:
    generate(parse_flags(GenerateConfig, argv, __doc__, prog="mdsc evaluate generate"))


def generate(config: GenerateConfig) -> dict:
    """Score, print the table, write what was asked for; gives what the JSON holds."""
    console = plain_console()
    for flag, given in (("--max-cells", config.max_cells), ("--repeats", config.repeats)):
        if given < 1:
            raise UserError(f"{flag} is {given}; it takes 1 or more.")
    check_report_path(config.report, [".html"])
    real, generated, train = read_sets(
        config.real,
        config.generated,
        config.train,
        layer=config.layer,
        column=config.by,
        most_cells=config.max_cells,
        seed=config.seed,
        say=console.print,
    )
    if not has_pot():
        console.print('w2 is left out: it needs the package POT (pip install "mdsc[eval]")')
    options = {"most_cells": config.max_cells, "seed": config.seed}
    result = score_generation(
        real.counts, generated.counts, train.counts, repeats=config.repeats, say=console.print, **options
    )
    console.print(generation_table(result), soft_wrap=False)
    for verdict in verdicts(result):
        console.print(verdict.text)
    by = {} if config.by is None else _by(config.by, real, generated, train, console.print, **options)

    settings = _settings(config, real, generated, train, result)
    scores = {**result.to_json(), "settings": settings}
    if by:
        scores["by"] = {level: of_level.to_json() for level, of_level in by.items()}
    write_scores(scores, config.json, console.print)
    if config.report is not None:
        from mdsc.evaluation.generation_report import generation_report

        sets = {"real": real.counts, "generated": generated.counts, "train": train.counts}
        generation_report(result, by, settings, **sets).save(config.report)
        console.print(f"wrote {config.report}")
    return scores


def _by(
    column: str, real: SourceCells, generated: SourceCells, train: SourceCells, say: Callable[[str], None], **options
) -> dict[str, GenerationResult]:
    """Each value of the column that both have enough cells of; the space and baselines of its training cells, where
    there are enough, else of all."""
    from rich import box
    from rich.table import Table

    found = {}
    for level in np.unique(real.conditions[column]):
        sets = [cells.of_rows(np.flatnonzero(cells.conditions[column] == level)) for cells in (real, generated)]
        of_level = train.conditions.get(column, np.array([])) == level
        fitted = train.of_rows(np.flatnonzero(of_level)) if of_level.sum() >= 2 * LEAST_CELLS else train
        if sets[0].counts.shape[0] < 2 * LEAST_CELLS or sets[1].counts.shape[0] < LEAST_CELLS:
            sizes = " and ".join(f"{cells.counts.shape[0]} of {cells.name}" for cells in sets)
            say(f"{column} {level}: left out, too few cells ({sizes})")
            continue
        found[str(level)] = score_generation(
            sets[0].counts, sets[1].counts, fitted.counts, metrics=QUICK, repeats=3, **options
        )
    table = Table(box=box.SIMPLE_HEAD, caption="generated (floor)", caption_justify="left", padding=(0, 1))
    for heading in (column, "cells", *QUICK):
        table.add_column(heading, justify="left" if heading == column else "right")
    for level, result in found.items():
        table.add_row(level, f"{result.cells:,}", *level_texts(result))
    say(table)
    return found


def _settings(
    config: GenerateConfig, real: SourceCells, generated: SourceCells, train: SourceCells, result: GenerationResult
) -> dict:
    return {
        "real": real.name,
        "generated": generated.name,
        "train": train.name if config.train is not None else f"a third of {real.name}",
        "real_cells": real.counts.shape[0],
        "generated_cells": generated.counts.shape[0],
        "training_cells": train.counts.shape[0],
        "genes": len(real.places),
        "cells_compared": result.cells,
        "repeats": config.repeats,
        "seed": config.seed,
        "versions": versions("numpy", "scipy", "scikit-learn", *(["POT"] if has_pot() else [])),
    }
