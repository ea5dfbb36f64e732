"""Real cells that the project does not come with: training, then `evaluate inpaint`, for several seeds and tokenizers.

    python benchmarks/inpaint.py --tokenizers rank quantile count --markdown results.md
    python benchmarks/inpaint.py --data demo --config configs/tiny.yaml

Reads `shared/data/*.h5ad` beside the repository; a data set that is not there is left out. Flags after `--` go to
train.py. What is done already stays, so that the benchmark can be stopped and started again.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import tyro
from finished_steps import once
from inpaint_tables import all_tables
from real_cells import ROOT, SplitCells, prepare_embedded, prepare_split, shared_file, split_paths
from result_tables import write_markdown

from mdsc.atomic import replacing
from mdsc.checkpoint import WEIGHTS
from mdsc.cli import exit_with
from mdsc.errors import UserError

MASK_RATIOS = ("0.2", "0.5", "0.8")
EMBEDDED = "demo"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    data: tuple[str, ...] = ("pbmc3k", "kang2018_ifnb")
    """Data sets: names of files in shared/data, without .h5ad; or demo, the embedded cells with the demo's split."""
    tokenizers: tuple[str, ...] = ("rank",)
    """Tokenizers; the first is the one of the main tables."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training, of what is hidden and of the pooled baseline. The split into training and test cells stays."""
    num_genes: int = 2000
    """The most variable genes, chosen on the training cells."""
    config: Path = ROOT / "configs" / "benchmark.yaml"
    """Options of training."""
    pooled_steps: int = 3000
    """Optimiser steps of the attention-free baseline `pooled`; 0 leaves it out."""
    work_dir: Path = Path("runs/benchmark")
    """Folder for cells, runs and scores."""
    json: Path | None = None
    """File for the scores of all runs."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    end = argv.index("--") if "--" in argv else len(argv)
    config = tyro.cli(BenchmarkConfig, args=argv[:end], description=__doc__)
    train_flags = list(argv[end + 1 :])
    runs, sizes = [], {}
    for name in config.data:
        source = None if name == EMBEDDED else shared_file(f"{name}.h5ad")
        if source is None and name != EMBEDDED:
            print(f"{name}: left out, because there is no shared/data/{name}.h5ad beside the repository")
            continue
        folder = config.work_dir.resolve() / name
        size = once(folder / "split.json", *split_step(source, folder, config.num_genes))["result"]
        cells, sizes[name] = split_paths(folder, size), size
        for tokenizer in config.tokenizers:
            for seed in config.seeds:
                print(f"{name}, {tokenizer}, seed {seed}", flush=True)
                run = run_once(config, folder / f"{tokenizer}-seed{seed}", cells, tokenizer, seed, train_flags)
                runs.append({"data": name, "tokenizer": tokenizer, "seed": seed, **run})
    if not runs:
        return
    tables = all_tables(runs, sizes)
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps({"sizes": sizes, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        introduction = (
            "Held-out cells (20%) with a share of their counts hidden; scores are of hidden positions alone, the same "
            "for all predictors. Training of the model is `train.py`, scoring is `evaluate.py inpaint`. "
            "Mean ± standard deviation over seeds."
        )
        write_markdown(config.markdown, "Filling in hidden counts", introduction, tables)


def split_step(source: Path | None, folder: Path, num_genes: int) -> tuple[dict, Callable[[], dict]]:
    """What tells whether it is done already, and the step: split a file, or the embedded cells where there is none."""
    if source is None:
        return {"source": EMBEDDED, "mdsc": version("mdsc")}, lambda: prepare_embedded(folder)
    note = {"source": source.stem, "num_genes": num_genes, "bytes": source.stat().st_size}
    return note, lambda: prepare_split(source, folder, num_genes)


def run_once(
    config: BenchmarkConfig, folder: Path, cells: SplitCells, tokenizer: str, seed: int, train_flags: list[str]
) -> dict:
    """Train and score, where that is not done: {"train_seconds", "evaluate_seconds", "scores"}."""
    train = ["train.py", "--config", str(config.config.resolve()), "--data.dir", str(cells.shards)]
    train += ["--output-dir", str(folder), "--seed", str(seed), "--tokenizer.name", tokenizer, *train_flags]
    scores = folder / "scores.json"
    evaluate = ["evaluate.py", "inpaint", "--checkpoint", str(folder)]
    evaluate += ["--input", str(cells.test), "--train", str(cells.train), "--mask-ratios", *MASK_RATIOS]
    evaluate += ["--seed", str(seed), "--pooled-steps", str(config.pooled_steps), "--json", str(scores)]

    if not (folder / WEIGHTS).is_file():
        (folder / "trained.json").unlink(missing_ok=True)
    options = {"command": train, "config": digest(config.config), "cells": asdict(cells)["size"]}
    trained = once(folder / "trained.json", options, lambda: run(train))
    options = {"command": evaluate, "weights": digest(folder / WEIGHTS)}
    scored = once(folder / "scored.json", options, lambda: run(evaluate))
    return {
        "train_seconds": trained["seconds"],
        "evaluate_seconds": scored["seconds"],
        "scores": json.loads(scores.read_text(encoding="utf-8")),
    }


def run(command: list[str]) -> None:
    """One of the project's own commands, in the clone, with this Python."""
    code = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=ROOT).returncode
    if code:
        raise UserError(f"{command[0]} ended with exit code {code}; see above. What was done before stays.")


def digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
