"""The cells of the comparison of samplers, and a network for each set, trained within minutes on a CPU.

pbmc3k: 512 variable genes of `shared/data/pbmc3k.h5ad`. simulated: cells whose law is known. Held-out cells are in two
halves: the counts of one are hidden and filled in, and the other is what generated and filled cells are compared with.
"""

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from finished_steps import once
from jaxtyping import Integer
from real_cells import ROOT, prepare_split, shared_file, split_paths

from mdsc.checkpoint import WEIGHTS, Checkpoint, load_checkpoint
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.evaluation.cell_sources import read_h5ad, read_shards
from mdsc.prep.simulate import simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth

SIMULATED = "simulated"
NUM_GENES = 512
SIMULATION = SimulationConfig(num_cells=6000, num_genes=NUM_GENES, median_depth=400.0)
TRAINING = "--config configs/laptop.yaml --train.max-steps 2000 --train.validate-every 1000"
FLAGS = {
    SIMULATED: "--tokenizer.name count --tokenizer.num-tokens 16 --train.gene-weight-decay 0 --model.state-dropout 0",
    "pbmc3k": "--tokenizer.name rank --tokenizer.num-tokens 24",
}


@dataclass(frozen=True)
class SampledCells:
    """One set of cells: a network, and held-out cells, dense, in the genes of its vocabulary."""

    name: str
    checkpoint: Checkpoint
    to_fill: Integer[np.ndarray, "cells genes"]
    to_compare: Integer[np.ndarray, "others genes"]
    truth: Truth | None


def prepare(name: str, work_dir: Path, num_cells: int) -> SampledCells | None:
    """Made and trained where that is not done yet; None where the file is missing. num_cells: to fill, at most."""
    folder = work_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == SIMULATED:
        once(folder / "cells.json", asdict(SIMULATION), lambda: _simulate(folder))
        shards, test = folder / "shards", None
    else:
        if (source := shared_file(f"{name}.h5ad")) is None:
            print(f"{name}: left out, because there is no shared/data/{name}.h5ad beside the repository")
            return None
        note = {"source": name, "num_genes": NUM_GENES, "bytes": source.stat().st_size}
        size = once(folder / "cells.json", note, lambda: prepare_split(source, folder, NUM_GENES))["result"]
        paths = split_paths(folder, size)
        shards, test = paths.shards, paths.test
    checkpoint = _trained(name, folder, shards)
    if test is None:
        opened = ShardFolder.open(shards)
        cells = read_shards(opened, opened.held_out_split, checkpoint.vocabulary, most=1200)
    else:
        cells = read_h5ad(test, checkpoint.vocabulary, most=1200)
    order = np.argsort(cells.places)
    counts = cells.counts[:, order].toarray()
    assert (cells.places[order] == np.arange(NUM_GENES)).all()
    num_cells = min(num_cells, len(counts) // 2)
    truth = Truth.load(shards / "truth.safetensors") if name == SIMULATED else None
    return SampledCells(name, checkpoint, counts[:num_cells], counts[num_cells:], truth)


def _simulate(folder: Path) -> dict:
    made = simulate_shards(Truth.of(SIMULATION), folder / "shards")
    return {"train": made.num_cells("train"), "test": made.num_cells("heldout")}


def _trained(name: str, folder: Path, shards: Path) -> Checkpoint:
    run = folder / "run"
    command = ["train.py", *TRAINING.split(), *FLAGS[name].split()]
    command += ["--data.dir", str(shards), "--output-dir", str(run), "--seed", "0"]

    def step() -> None:
        if code := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            raise UserError(f"train.py ended with exit code {code}; see above.")

    if not (run / WEIGHTS).is_file():
        (folder / "trained.json").unlink(missing_ok=True)
    once(folder / "trained.json", {"command": command}, step)
    return load_checkpoint(run)
