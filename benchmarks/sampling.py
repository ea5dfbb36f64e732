"""Samplers: how close to real cells with how many network evaluations, beside 1,024 ancestral steps.

    python benchmarks/sampling.py --markdown sampling.md
    python benchmarks/sampling.py --data simulated --steps 8 32 --seeds 0

Cells are generated from nothing, and held-out cells are filled in of which 80% is hidden. One network for each set of
cells (`sampling_cells.py`), trained at first; seeds are those of what is hidden and drawn. What is measured already
stays, so that the benchmark can be stopped and started again.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from finished_steps import once
from result_tables import write_markdown
from sampling_cells import SIMULATED, SampledCells, prepare
from sampling_scores import distances
from sampling_tables import all_tables

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Evidence
from mdsc.sampling.loaded_model import cells_per_pass, predictor
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden

TASKS = {"generate": 1.0, "inpaint": 0.8}
"""Share of the genes that is hidden."""
REFERENCE = "ancestral"
VARIANTS: dict[str, dict] = {
    "ancestral": {"sampler": "ancestral"},
    "first_hitting": {"sampler": "first_hitting"},
    "first_hitting, uniform": {"sampler": "first_hitting", "grid": "uniform"},
    "entropy_bounded": {"sampler": "entropy_bounded"},
    "remdm, cap": {"sampler": "remdm", "remask": "cap"},
}
"""Options of each row of the tables; the grid is cosine where it is not named."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    data: tuple[str, ...] = (SIMULATED, "pbmc3k")
    """Sets of cells: simulated, and names of files in shared/data without .h5ad."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Samplers, with options."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Network evaluations of a cell, at most."""
    reference_steps: int = 1024
    """Steps of the ancestral sampler that all are held against."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of what is hidden and of what is drawn."""
    num_cells: int = 256
    """Cells to generate, and held-out cells to fill in."""
    work_dir: Path = Path("runs/sampling")
    """Folder for cells, networks and scores."""
    json: Path | None = None
    """File for all that was measured."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(SamplingConfig, args=argv, description=__doc__)
    torch.set_num_threads(1)
    work_dir = config.work_dir.resolve()
    found = [cells for name in config.data if (cells := prepare(name, work_dir, config.num_cells)) is not None]
    runs = []
    for seed in config.seeds:  # all of a seed first: a benchmark that is stopped has compared something
        for cells in found:
            for task in TASKS:
                runs.append(real_run(cells, task, seed))
                runs.append(run_once(cells, task, REFERENCE, config.reference_steps, seed, work_dir))
                for num_steps in config.steps:
                    for variant in config.variants if num_steps > 1 else [REFERENCE]:
                        runs.append(run_once(cells, task, variant, num_steps, seed, work_dir))
    if not runs:
        return
    tables = all_tables(runs, (REFERENCE, config.reference_steps))
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        write_markdown(config.markdown, "Samplers", "Distances of sampled cells from real ones.", tables)


def run_once(cells: SampledCells, task: str, variant: str, num_steps: int, seed: int, work_dir: Path) -> dict:
    """Sample and score, where that is not done: {"scores", "cpu_seconds", "passes", "cells"} with the run's names."""
    options = SamplerOptions(num_steps=num_steps, **VARIANTS[variant])
    name = f"{task}-{variant.replace(', ', '_')}-{num_steps}-{seed}"
    note = {"options": asdict(options), "seed": seed, "cells": len(cells.to_fill), "of": len(cells.to_compare)}
    done = once(work_dir / cells.name / f"{name}.json", note, lambda: sample_and_score(cells, task, options, seed))
    print(f"{cells.name}, {name}: {done['result']['cpu_seconds']:.1f} CPU s", flush=True)
    return {"data": cells.name, "task": task, "variant": variant, "steps": num_steps, "seed": seed, **done["result"]}


def real_run(cells: SampledCells, task: str, seed: int) -> dict:
    """The same scores of the held-out cells themselves: what they are where nothing is wrong."""
    scores = scored(cells, torch.from_numpy(cells.to_fill), evidence_of(cells, task, seed))
    return {"data": cells.name, "task": task, "variant": "real cells", "steps": 0, "seed": seed, "scores": scores}


def sample_and_score(cells: SampledCells, task: str, options: SamplerOptions, seed: int) -> dict:
    evidence = evidence_of(cells, task, seed)
    network, tokenizer, passes = predictor(cells.checkpoint), cells.checkpoint.tokenizer, 0

    def predict(gene_ids, *others):
        nonlocal passes
        passes += len(gene_ids)
        return network(gene_ids, *others)

    start = time.process_time()
    size = cells_per_pass(evidence.counts.shape[1], None, torch.device("cpu"))
    counts = torch.cat([draw_hidden(predict, part, tokenizer, options, seed=seed) for part in evidence.split(size)])
    seconds = time.process_time() - start
    passes /= len(evidence)
    return {"scores": scored(cells, counts, evidence), "cpu_seconds": seconds, "passes": passes, "cells": len(evidence)}


def scored(cells: SampledCells, counts: torch.Tensor, evidence: Evidence) -> dict[str, float]:
    hidden = evidence.hidden.numpy()
    return distances(counts.numpy(), hidden, cells.to_compare, cells.truth, cells.checkpoint.tokenizer)


def evidence_of(cells: SampledCells, task: str, seed: int) -> Evidence:
    """All of the task's cells; what is hidden of a cell does not look at its counts."""
    counts = torch.from_numpy(cells.to_fill)
    no_pad = torch.zeros(counts.shape, dtype=torch.bool)
    index = torch.arange(len(counts))
    visible = ~hide_fraction(no_pad, TASKS[task], seed=seed, cell_index=index)
    return Evidence(
        gene_ids=torch.arange(counts.shape[1]).expand(counts.shape),
        counts=counts * visible,
        visible=visible,
        is_pad=no_pad,
        cell_index=index,
    )


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
