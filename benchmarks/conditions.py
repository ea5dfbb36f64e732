"""What conditions are worth: drugs of known effect, drugs without cells, and interferon in a cell type left out.

    python benchmarks/conditions.py --json conditions.json --markdown docs/results/conditions.md

All runs train configs/laptop.yaml. What is done already stays in --work-dir, so that this can be stopped and started
again; the cells of Kang et al. 2018 are left out where shared/data does not have them.
"""

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import tyro
from conditions_kang import EDITED, STIMULATED, kang_cells, score_left_out
from conditions_simulated import KNOWN, UNSEEN, known_drugs, unseen_drugs
from finished_steps import once
from real_cells import shared_file
from result_tables import ResultTable, mean_and_sd, write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with

PARTS = ("known", "unseen", "kang")


@dataclass(frozen=True, kw_only=True)
class ConditionsConfig:
    only: tuple[Literal["known", "unseen", "kang"], ...] = PARTS
    """Parts to do."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the simulated truth, its cells and the training on it."""
    kang_seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; the cells that are left out are the same."""
    simulated_steps: int = 1200
    """Optimiser steps on simulated cells."""
    kang_types: tuple[str, ...] = ()
    """Cell types of Kang et al. to leave out, one at a time; all where none is given."""
    kang_steps: int = 1600
    """Optimiser steps on the cells of Kang et al."""
    num_cells: int = 600
    """Simulated cells that are generated for each drug; a third of it at other guidance than 1."""
    num_steps: int = 16
    """Steps of sampling."""
    work_dir: Path = Path("runs/conditions")
    """Folder for runs and scores."""
    json: Path | None = None
    """File for all scores."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(ConditionsConfig, args=argv, description=__doc__)
    simulated = {"steps": options.simulated_steps, "num_cells": options.num_cells, "num_steps": options.num_steps}
    results: dict[str, list[dict]] = {part: [] for part in PARTS}
    for seed in options.seeds:
        for part, run, truth in (("known", known_drugs, KNOWN), ("unseen", unseen_drugs, UNSEEN)):
            if part in options.only:
                settings = {"truth": asdict(truth), "seed": seed, **simulated}
                results[part].append(_done(options, f"{part}-{seed}", settings, run, seed=seed, **simulated))
    if "kang" in options.only and shared_file("kang2018_ifnb.h5ad") is not None:
        cells, steps = kang_cells(), {"steps": options.kang_steps, "num_steps": options.num_steps}
        for seed in options.kang_seeds:
            for cell_type in options.kang_types or sorted(cells.obs["cell_type"].unique()):
                settings = {"cell_type": cell_type, "seed": seed, **steps}
                run = lambda folder, **others: score_left_out(cells, others.pop("cell_type"), folder, **others)  # noqa: E731
                done = _done(options, f"kang-{cell_type}-{seed}", settings, run, **settings)
                results["kang"].append({"cell_type": cell_type, "seed": seed} | done)
    tables = [
        table for table in (_known(results["known"]), _unseen(results["unseen"]), *_kang(results["kang"])) if table
    ]
    for table in tables:
        table.show()
    if options.json is not None:
        with replacing(options.json) as beside:
            beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.markdown is not None:
        write_markdown(options.markdown, "Conditions", INTRODUCTION.strip(), tables)


def _done(options: ConditionsConfig, name: str, settings: dict, run: Callable[..., dict], **given) -> dict:
    folder = options.work_dir / name
    print(name, flush=True)

    def step() -> dict:
        shutil.rmtree(folder, ignore_errors=True)
        return run(folder, **given)

    done = once(options.work_dir / f"{name}.json", settings, step)
    print(f"  {done['seconds']:.0f} s", flush=True)
    return done["result"]


def _known(runs: list[dict]) -> ResultTable | None:
    if not runs:
        return None
    columns = ["cells", "r", "lowest r", "slope"]
    rows = [["all cells of the simulation", *_agreement([run["real"] for run in runs])]]
    for guidance in runs[0]["guidance"]:
        rows.append([f"generated, guidance {guidance}", *_agreement([run["guidance"][guidance] for run in runs])])
    rows.append(["generated, guidance 1, cell type told too", *_agreement([run["cell type told too"] for run in runs])])
    ordered = [
        _is_ascending([run["guidance"][g][drug]["slope"] for g in run["guidance"]])
        for run in runs
        for drug in run["real"]
    ]
    return ResultTable(
        "Drugs of known effect",
        columns,
        rows,
        f"Truths: {len(runs)}, each with {len(runs[0]['real'])} drugs and a training of its own. Log fold change of "
        "each gene's mean against control, and the truth's effect: Pearson r over all genes and the slope of the one "
        "on the other; mean ± standard deviation over drugs and truths. Nothing but the drug is told, if not said "
        "otherwise, and the control cells "
        f"have had the same guidance. The slope grows with guidance, at each step of the table, for {sum(ordered)} of "
        f"the {len(ordered)} drugs.",
    )


def _unseen(runs: list[dict]) -> ResultTable | None:
    if not runs:
        return None
    rows = [["all cells of these drugs", *_agreement([run["real"] for run in runs])]]
    for name in runs[0]["generated"]:
        rows.append([f"generated, {name}", *_agreement([run["generated"][name] for run in runs])])
    rows += [[name, *_agreement([run["baselines"][name] for run in runs])] for name in runs[0]["baselines"]]
    return ResultTable(
        "Drugs that no training cell had, told by their features",
        ["cells or prediction", "r", "lowest r", "slope"],
        rows,
        f"Truths: {len(runs)}, each with {UNSEEN.num_drugs} drugs, of which {UNSEEN.unseen_drugs} have no training "
        f"cell; effects are linear in {UNSEEN.feature_size} features. Seen drugs are as many that have training cells. "
        "The baselines are made of the training drugs' mean counts, and the ridge regression has the truth's own law.",
    )


def _kang(runs: list[dict]) -> list[ResultTable]:
    if not runs:
        return []
    types = sorted({run["cell_type"] for run in runs})
    names = list(runs[0]["model"])

    def mean(kind: str, name: str, cell_type: str) -> float:
        return statistics.fmean(run[kind][name] for run in runs if run["cell_type"] == cell_type)

    def row(kind: str, name: str) -> list[str]:
        if runs[0][kind][name] is None:
            return [name, *["n/a"] * (len(types) + 1)]
        means = [mean(kind, name, cell_type) for cell_type in types]
        return [name, *(f"{one:.3f}" for one in means), mean_and_sd(means)]

    rows = [row("baselines", name) for name in runs[0]["baselines"]]
    rows += [row("model", name) for name in names]
    spread = [
        statistics.stdev(values)
        for t in types
        if len(values := [run["model"][names[0]] for run in runs if run["cell_type"] == t]) > 1
    ]
    cells = {run["cell_type"]: run["cells"] for run in runs}
    above = [
        f"{name} {sum(mean('model', names[0], t) > mean('baselines', name, t) for t in types)}"
        for name, value in runs[0]["baselines"].items()
        if value is not None
    ]
    return [
        ResultTable(
            "Interferon in a cell type left out: PearsonDelta",
            ["prediction", *types, "mean ± sd over types"],
            rows,
            "Each cell type's stimulated cells are left out of training in turn; trainings of each: "
            f"{len({run['seed'] for run in runs})}; the genes are chosen without them. PearsonDelta: over genes, "
            "predicted mean less the mean of the type's real control cells, with the true change; "
            "means of log1p of counts per 10,000. "
            f"In so many of the {len(types)} types is '{names[0]}' above: {', '.join(above)}. "
            f"Control / {STIMULATED} cells: "
            + ", ".join(f"{name} {cells[name]['control']}/{cells[name]['stimulated']}" for name in types)
            + (
                f". Standard deviation over seeds of the first model row: {statistics.fmean(spread):.3f}."
                if spread
                else "."
            ),
        )
    ]


def _agreement(runs: list[dict[str, dict[str, float]]]) -> list[str]:
    scores = [score for run in runs for score in run.values()]
    known = [score["r"] for score in scores if score["r"] == score["r"]]
    return [
        mean_and_sd(known),
        f"{min(known):.3f}" if known else "-",
        mean_and_sd([s["slope"] for s in scores], signed=True),
    ]


def _is_ascending(values: list[float]) -> bool:
    return all(one < other for one, other in pairwise(values))


INTRODUCTION = f"""
Cells made under conditions, beside what is known of them or was measured. The model is configs/laptop.yaml, which has
no transformer. How conditions are given, and what guidance is, stands in docs/conditions.md. "Edited" are real control
cells of which {" or ".join(f"{share:.0%}" for share in EDITED)} of the genes were hidden at a time and drawn as
stimulated, until each was; "the rest kept": hidden once, and what was not is the control cell's own.
"""

if __name__ == "__main__":
    import sys

    exit_with(lambda: main(sys.argv[1:]))
