"""The parent's way of predicting perturbations beside ours, what each of its faults costs, and steps against quality.

    python benchmarks/perturbation_faults.py --markdown docs/results/perturbation_faults.md

Cells are simulated, with effects that the gene embeddings tell (`mdsc prepare simulate-perturbations`). What is done
already stays in --work-dir, so that this can be stopped and started again.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from finished_steps import once
from perturbation_fault_figures import permuted_noise, set_loss_floors
from perturbation_fault_runs import scored, walks
from perturbation_fault_tables import all_tables
from result_tables import write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.perturbation.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLERS
from mdsc.prep.perturbation_truth import PerturbationSimulation

NUM_SETS = 64
INTRODUCTION = """
Parent: configs/adamson_parent.yaml. Ours: configs/adamson_pca.yaml. The same cells, split of the perturbations, network
size, steps and batches; simulated, so that the effects are known to depend on the gene embeddings. Parent, as far as it
is one config of the same code: its latents are standardised, and centred at the unperturbed cells, which it had not.
"""


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the simulation, its split and the training on it."""
    num_cells: int = 12_000
    """Simulated cells."""
    num_genes: int = 500
    """Genes."""
    num_perturbations: int = 86
    """Perturbed ones."""
    max_steps: int = 2000
    """Optimiser steps of each training."""
    pca_size: int = 50
    """Latents."""
    cells_each: int = 64
    """Cells that are drawn of each test perturbation."""
    walk_cells: int = 20
    """Of those that are drawn by each sampler."""
    num_steps: tuple[int, ...] = (5, 10, 20, 25, 50)
    """Steps of each sampler."""
    long_steps: int = 1000
    """Steps of ddpm that the samplers are compared with, and of the parent."""
    sampling_seeds: tuple[int, ...] = (0, 1, 2)
    """Of the cells drawn by each sampler, from the first seed's head."""
    quick: bool = False
    """A few cells, steps and seeds: whether all of it works, in seconds."""
    work_dir: Path = Path("runs/perturbation_faults")
    """Folder for runs and scores."""
    json: Path | None = None
    """File for the numbers."""
    markdown: Path | None = None
    """File for the tables."""

    @property
    def sized(self) -> "FaultsConfig":
        if not self.quick:
            return self
        return replace(
            self, seeds=self.seeds[:1], num_cells=600, num_genes=60, num_perturbations=16, max_steps=4, pca_size=8,
            cells_each=8, walk_cells=4, num_steps=(3,), long_steps=6, sampling_seeds=self.sampling_seeds[:2],
        )  # fmt: skip


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(FaultsConfig, args=argv, description=__doc__).sized
    torch.set_num_threads(1)
    results = measure(options)
    tables = all_tables(results, options.long_steps)
    for table in tables:
        table.show()
    if options.json is not None:
        with replacing(options.json) as beside:
            beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.markdown is not None:
        write_markdown(options.markdown, "Faults of the parent's perturbation model", INTRODUCTION.strip(), tables)


def measure(options: FaultsConfig) -> dict:
    more = ["--train.max-steps", str(options.max_steps), "--gaussian.pca-size", str(options.pca_size)]
    runs = []
    for seed in options.seeds:
        simulation = _simulation(options, seed)
        given = {"more": more, "long_steps": options.long_steps, "cells_each": options.cells_each}
        runs.append(_done(options, f"scored-{seed}", scored, simulation, options.work_dir / f"{seed}", **given))
    default = (DEFAULT_SAMPLER, DEFAULT_STEPS, True)
    chosen = [("ddpm", options.long_steps, False), default]
    chosen += [(sampler, steps, False) for sampler in SAMPLERS for steps in options.num_steps]
    first = options.seeds[0]
    drawn = [
        _done(
            options, f"walks-{seed}", walks, _simulation(options, first), options.work_dir / f"{first}",
            keeps_folder=True, trained_by=more, chosen=chosen, seed=seed, cells_each=options.walk_cells,
        )
        for seed in options.sampling_seeds
    ]  # fmt: skip
    sizes = (16, 32, 64, 128, 256)
    return {
        "simulation": asdict(_simulation(options, first)),
        "runs": runs,
        "walks": drawn,
        "permuted noise": {size: permuted_noise(NUM_SETS, size, options.pca_size, seed=0) for size in sizes},
        "floors": {size: set_loss_floors(NUM_SETS, size, options.pca_size, seed=0) for size in sizes},
    }


def _simulation(options: FaultsConfig, seed: int) -> PerturbationSimulation:
    return PerturbationSimulation(
        num_cells=options.num_cells,
        num_genes=options.num_genes,
        num_perturbations=options.num_perturbations,
        unexplained=0.1,
        seed=seed,
    )


def _done(
    options: FaultsConfig,
    name: str,
    run: Callable[..., dict],
    simulation: PerturbationSimulation,
    folder: Path,
    *,
    keeps_folder: bool = False,
    trained_by: Sequence[str] = (),
    **given,
) -> dict:
    """trained_by: what made the folder that the step reads; with other flags it is done anew."""
    print(name, flush=True)
    options.work_dir.mkdir(parents=True, exist_ok=True)

    def step() -> dict:
        if not keeps_folder:
            shutil.rmtree(folder, ignore_errors=True)
        return run(simulation, folder, **given)

    settings = {"simulation": asdict(simulation), "trained_by": list(trained_by), **given}
    done = once(options.work_dir / f"{name}.json", settings, step)
    print(f"  {done['seconds']:.0f} s", flush=True)
    return done["result"]


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
