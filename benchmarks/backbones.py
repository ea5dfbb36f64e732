"""A race of backbones: `dit`, `latent`, the same network without any, and `pooled`; equal CPU seconds for each run.

    python benchmarks/backbones.py --markdown backbones.md --plot backbones.png
    python benchmarks/backbones.py --data simulated_20k --backbones dit "no transformer" --budget-seconds 600 --seeds 0

How many steps fit into the budget is found by timing a few, so that a run with as many steps can be repeated. The
likelihood is measured as training goes on, over steps, CPU seconds and floating-point operations, and at the end on
held-out cells, beside baselines and, on simulated cells, beside what no model can beat. `no transformer` tells what a
backbone is worth: most of the lead over `pooled` is that of the genes' evidence (docs/results/ablations.md). What is
done already stays, so that the race can be stopped and started again.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from backbones_cells import HIDING_SEED, MASK_RATIOS, SIMULATED, RaceCells, prepare, sizes, training_counts
from backbones_run import CONTESTANTS, config_of, set_threads, steps_within, train_and_score, trial
from backbones_tables import all_tables, plot
from finished_steps import once
from result_tables import write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.data.tokenizers import Tokenizer, make_tokenizer
from mdsc.errors import UserError
from mdsc.evaluation.inpaint import score_inpainting
from mdsc.evaluation.low_rank import LowRank
from mdsc.evaluation.marginals import GeneMarginal
from mdsc.evaluation.predictor import TrainingCells

BASELINES = {"gene_marginal": GeneMarginal, "svd": LowRank}
BASELINE_CELLS = 5000
"""Training cells that these are fitted on at most."""


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    data: tuple[str, ...] = ("pbmc3k", "kang2018_donors", *SIMULATED)
    """Data sets: names of files in shared/data, without .h5ad, and simulated ones."""
    backbones: tuple[str, ...] = tuple(CONTESTANTS)
    """Who takes part."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training. Cells and what is hidden of the held-out ones stay."""
    budget_seconds: float = 40.0
    """CPU seconds of training of each run."""
    test_cells: int = 256
    """Held-out cells that are scored at most."""
    work_dir: Path = Path("runs/backbones")
    """Folder for cells, runs and scores."""
    json: Path | None = None
    """File for all that was measured."""
    markdown: Path | None = None
    """File for the tables."""
    plot: Path | None = None
    """File for the picture (PNG)."""


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(RaceConfig, args=argv, description=__doc__)
    if unknown := [name for name in options.backbones if name not in CONTESTANTS]:
        raise UserError(f"--backbones: there is no {unknown[0]!r}; there are {', '.join(map(repr, CONTESTANTS))}.")
    set_threads()
    work_dir = options.work_dir.resolve()
    cells = [prepared for name in options.data if (prepared := prepare(name, work_dir)) is not None]
    runs = []
    for seed in options.seeds:  # all of a seed first: a race that is stopped has compared something
        for of_data in cells:
            for name in options.backbones:
                runs.append(run_once(options, of_data, name, seed, work_dir))
    if not runs:
        return
    references = {of_data.name: references_of(options, of_data, work_dir) for of_data in cells}
    tables = all_tables(runs, references)
    for table in tables:
        table.show()
    _write(options, runs, references, tables)


def run_once(options: RaceConfig, cells: RaceCells, name: str, seed: int, work_dir: Path) -> dict:
    """Time a few steps, train and score, where that is not done: what was measured, with the run's names."""
    contestant = CONTESTANTS[name]
    folder = work_dir / cells.name / f"{name.replace(' ', '_')}-{options.budget_seconds:g}s-seed{seed}"
    config = config_of(cells, contestant, seed, folder)
    what = {"flags": f"{cells.flags} {contestant.flags}", "data": sizes(cells)}
    timing_folder = work_dir / cells.name / f"{name.replace(' ', '_')}-trial"
    timing = once(Path(f"{timing_folder}.json"), what, lambda: trial(config_of(cells, contestant, 0, timing_folder)))[
        "result"
    ]
    steps, pathway_steps = steps_within(options.budget_seconds, contestant.pathway_share, timing["seconds"])
    what |= {"seed": seed, "steps": [steps, pathway_steps], "test_cells": options.test_cells}
    print(f"{cells.name}, {name}, seed {seed}: {steps} steps, {pathway_steps} of them of the pathway alone", flush=True)
    done = once(
        Path(f"{folder}.json"),
        what,
        lambda: train_and_score(config, cells, steps, pathway_steps, options.test_cells),
    )
    nll = {ratio: round(value, 4) for ratio, value in done["result"]["nll"].items()}
    print(f"  {done['result']['cpu_seconds']:.0f} CPU s of {done['seconds']:.0f} s, nll {nll}", flush=True)
    return {"data": cells.name, "backbone": name, "seed": seed, "flops": timing["flops"], **done["result"]}


def references_of(options: RaceConfig, cells: RaceCells, work_dir: Path) -> dict:
    """{"sizes": ..., "nll": {baseline or "oracle": {mask ratio: ...}}}, on the cells that the runs are scored on."""
    tokenizer = _tokenizer(cells)

    def step() -> dict:
        train = TrainingCells.of(training_counts(cells, BASELINE_CELLS), tokenizer)
        held_out = cells.held_out(options.test_cells)
        scored = score_inpainting(
            held_out, tokenizer, MASK_RATIOS, train=train, baselines=BASELINES, seed=HIDING_SEED
        ).scores
        nll = {
            name: {f"{ratio:g}": scored[ratio][name].metrics()["nll"] for ratio in MASK_RATIOS} for name in BASELINES
        }
        oracle = cells.oracle(tokenizer, options.test_cells)
        return {"nll": nll | ({"oracle": oracle} if oracle else {})}

    note = {"data": sizes(cells), "test_cells": options.test_cells, "baseline_cells": BASELINE_CELLS}
    done = once(work_dir / cells.name / f"references-{options.test_cells}.json", note, step)
    return {"sizes": sizes(cells), **done["result"]}


def _tokenizer(cells: RaceCells) -> Tokenizer:
    """That of the runs, before it is fitted; the values it then has change no likelihood but that of its open bin."""
    config = config_of(cells, CONTESTANTS["pooled"], 0, Path("unused"))
    return make_tokenizer(config.tokenizer.name, config.tokenizer.num_tokens)


def _write(options: RaceConfig, runs: list[dict], references: dict, tables: list) -> None:
    if options.json is not None:
        with replacing(options.json) as beside:
            text = json.dumps({"options": list(sys.argv[1:]), "references": references, "runs": runs}, indent=1)
            beside.write_text(text + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(runs, options.plot)
    if options.markdown is not None:
        flags = "\n".join(f"- {name}: `{CONTESTANTS[name].flags}`" for name in options.backbones)
        write_markdown(options.markdown, "Backbones", f"Settings:\n\n{flags}", tables)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
