"""The Gaussian head without PCA: every number of 2,000 steps is finite, and what is predicted at the end.

python benchmarks/all_genes.py --markdown docs/results/all_genes.md
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from finished_steps import once
from perturbation_methods import GAUSSIAN, gaussian, predicted, prepared
from perturbation_tasks import simulated
from result_tables import ResultTable, mean_and_sd, write_markdown

from mdsc.cli import exit_with
from mdsc.evaluation.perturb_scores import score
from mdsc.training.tracking import read_metrics

INTRODUCTION = """
Latents are all genes, each over its standard deviation or .05, whichever is larger (`--gaussian.pca-size None`). Cells
are simulated; 22 of 86 perturbations are held out.
"""


@dataclass(frozen=True, kw_only=True)
class AllGenesConfig:
    targets: tuple[str, ...] = ("v", "flow", "edm", "epsilon")
    """What the network is asked for; epsilon is drawn by ddpm in 200 steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training."""
    steps: int = 2000
    """Optimiser steps."""
    num_cells: int = 12_000
    """Simulated cells."""
    num_genes: int = 500
    """Their genes."""
    work_dir: Path = Path("runs/all_genes")
    """Folder for runs and scores."""
    markdown: Path | None = None
    """File for the table."""


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(AllGenesConfig, args=argv, description=__doc__)
    fold = next(simulated(options.num_cells, options.num_genes))
    folder = options.work_dir / f"{options.num_cells}x{options.num_genes}"
    shards, task = prepared(fold, folder), fold.task()

    def run(target: str, seed: int) -> dict:
        flags = ["--gaussian.pca-size", "None", "--gaussian.target", target, "--train.max-steps", str(options.steps)]
        flags += ["--train.global-batch-size", "64", "--gaussian.width", "128", "--gaussian.num-layers", "2"]
        flags += ["--train.log-every", "1", "--validation.num-cells", "64"]
        if target == "epsilon":
            flags += ["--gaussian.sampler", "ddpm", "--gaussian.num-steps", "200"]
        checkpoint = gaussian(fold, shards, folder / f"{target}-{seed}", seed, flags)
        lines = read_metrics(folder / f"{target}-{seed}")
        numbers = [value for line in lines if "event" not in line for value in line.values()]
        found = score(task, [predicted(GAUSSIAN, fold, task, checkpoint, seed)], ("ridge",), num_bootstrap=0)
        means = {method: found.estimate(method, "pearson_delta_pert") for method in (GAUSSIAN, "ridge")}
        return {
            "steps": max(line["step"] for line in lines),
            "not_finite": sum(value is None or not np.isfinite(value) for value in numbers),
            "skipped": max(line.get("skipped_steps", 0) for line in lines),
            "pearson_delta_pert": {name: mean and mean.mean for name, mean in means.items()},
        }

    rows = []
    for target in options.targets:
        found = []
        for seed in options.seeds:
            print(f"{target}, seed {seed}", file=sys.stderr, flush=True)
            settings = {"target": target, "seed": seed, "steps": options.steps}
            found.append(once(folder / f"{target}-{seed}.json", settings, lambda: run(target, seed))["result"])  # noqa: B023
        rows.append(
            [
                target,
                str(len(found)),
                " ".join(f"{one['steps']:,}" for one in found),
                str(sum(one["not_finite"] for one in found)),
                str(sum(one["skipped"] for one in found)),
                mean_and_sd([one["pearson_delta_pert"][GAUSSIAN] for one in found]),
                mean_and_sd([one["pearson_delta_pert"]["ridge"] for one in found[:1]]),
            ]
        )
    columns = ["target", "seeds", "steps", "numbers not finite", "skipped steps", "PearsonDelta-pert", "ridge"]
    note = "Every step's loss, its terms and the norm of its gradient are in metrics.jsonl, and are what is counted."
    table = ResultTable("Without PCA", columns, rows, note)
    table.show()
    if options.markdown is not None:
        write_markdown(options.markdown, "The Gaussian head on all genes", INTRODUCTION.strip(), [table])


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
