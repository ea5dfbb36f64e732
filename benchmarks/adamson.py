"""The Adamson task from its public file to a table of scores: every step as a user would call it, timed.

    python benchmarks/adamson.py perturb_processed.h5ad --gene-embeddings GenePT_gene_embedding_ada_text.pickle
    python benchmarks/adamson.py --simulate --gene-embeddings genept_ada002_adamson86.csv.gz

GEARS' file (Dataverse 6154417) and GenePT's vectors are published and do not come with mdsc. With --simulate a file of
exactly that format and size, with known effects, takes the first one's place. What is done already stays in --work-dir:
a step whose output is there is not done again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from real_cells import ROOT
from result_tables import ResultTable, write_markdown

from mdsc.cli import exit_with
from mdsc.data.perturbations import CONTROL
from mdsc.errors import UserError

INTRODUCTION = """
`python data_prep/adamson.py`, `train.py`, `sample.py` and `evaluate.py perturb`, one after the other, on {source}.
"""


@dataclass(frozen=True, kw_only=True)
class AdamsonConfig:
    input: tyro.conf.Positional[Path | None] = None
    """GEARS' perturb_processed.h5ad, or any other file that `mdsc prepare perturbation` reads."""
    simulate: bool = False
    """Simulate cells in its place, at its size (--full)."""
    gene_embeddings: Path
    """GenePT's pickle, or another file that `mdsc prepare gene-embeddings` reads."""
    split: str = "adamson-86"
    """As --split of data_prep/adamson.py."""
    split_seed: int = 1
    """Seed of the split."""
    heads: tuple[Literal["pca", "masked"], ...] = ("pca",)
    """configs/adamson_pca.yaml, configs/adamson_masked.yaml."""
    cells: int = 500
    """Cells that are predicted of each test perturbation."""
    train_flags: str = ""
    """More flags of train.py."""
    simulate_flags: str = "--full --unexplained 0.1 --effect-size 0.7"
    """Flags of data_prep/simulate_perturbations.py."""
    work_dir: Path = Path("runs/adamson")
    """Folder for all that is made."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(AdamsonConfig, args=argv, description=__doc__)
    if (options.input is None) != options.simulate:
        raise UserError("give GEARS' file, or --simulate.")
    work = options.work_dir
    work.mkdir(parents=True, exist_ok=True)
    steps: list[list[str]] = []
    source, embeddings = options.input, options.gene_embeddings
    if options.simulate:
        source = work / "perturb_processed.h5ad"
        flags = ["--output", source, "--oracle", work / "oracle.h5ad", "--gene-embeddings", embeddings]
        steps.append(
            _step(work, "simulate", source, "data_prep/simulate_perturbations.py", *flags, options.simulate_flags)
        )
    genes = work / "genes.parquet"
    flags = [embeddings, "--output", genes, "--for", source]
    steps.append(_step(work, "gene embeddings", genes, "data_prep/gene_embeddings.py", *flags))
    task = work / "task"
    flags = [source, "--output-dir", task, "--gene-embeddings", genes, "--split", options.split]
    flags += ["--split-seed", options.split_seed]
    steps.append(_step(work, "prepare", task / "task.json", "data_prep/adamson.py", *flags))
    tested = _test_perturbations(task, work)
    predicted = []
    for head in options.heads:
        run, output = work / head, work / f"{head}.h5ad"
        flags = ["--config", ROOT / "configs" / f"adamson_{head}.yaml", "--data.dir", task / "shards"]
        flags += ["--data.condition-features", f"perturbation={task / 'features.parquet'}", "--output-dir", run]
        steps.append(_step(work, f"train {head}", run / "loss.png", "train.py", *flags, options.train_flags))
        flags = ["--checkpoint", run, "--input", task / "controls.h5ad", "--perturbation", tested, "--output", output]
        flags += ["--cells-per-perturbation", options.cells]
        steps.append(_step(work, f"sample {head}", output, "sample.py", *flags))
        predicted.append(f"{head}={output}")
    if options.simulate:
        predicted.append(f"oracle={work / 'oracle.h5ad'}")
    scores = work / "scores.json"
    scores.unlink(missing_ok=True)
    flags = ["--real", task / "cells.h5ad", "--predicted", *predicted, "--gene-embeddings", task / "features.parquet"]
    flags += ["--json", scores, "--report", work / "report.html"]
    steps.append(_step(work, "evaluate", scores, "evaluate.py", "perturb", *flags))
    tables = [_of_steps(steps), _of_scores(json.loads(scores.read_text(encoding="utf-8")))]
    for table in tables:
        table.show()
    if options.markdown is not None:
        name = "cells simulated in its format and at its size" if options.simulate else f"`{source.name}`"
        write_markdown(options.markdown, "The Adamson task, whole", INTRODUCTION.format(source=name).strip(), tables)


def _step(work: Path, name: str, output: Path, script: str, *flags) -> list[str]:
    """[name, seconds, peak memory], as they were when the output was made."""
    note = work / f"{name.replace(' ', '-')}.step.json"
    if not (output.exists() and note.is_file()):
        # One string may hold several flags.
        command = [sys.executable, str(ROOT / script)]
        for flag in flags:
            command += flag.split() if (isinstance(flag, str) and flag.startswith("--")) or flag == "" else [str(flag)]
        print(" ".join(command[1:]), flush=True)
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=Path.cwd())
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise UserError(f"{script} has failed; see above.")
        seconds = time.perf_counter() - start
        note.write_text(json.dumps({"seconds": seconds, "bytes": usage.ru_maxrss * 1024}), encoding="utf-8")
    found = json.loads(note.read_text(encoding="utf-8"))
    return [name, f"{found['seconds']:,.0f}", f"{found['bytes'] / 1e9:.1f}"]


def _test_perturbations(task: Path, work: Path) -> Path:
    """A text file of their names."""
    told = json.loads((task / "task.json").read_text(encoding="utf-8"))
    names = [name for name in told["cells"]["test"] if name != CONTROL]
    path = work / "test_perturbations.txt"
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


def _of_steps(steps: Sequence[Sequence[str]]) -> ResultTable:
    note = f"Each step is a process of its own, on {os.cpu_count()} CPU cores; GB: the most that it held."
    return ResultTable("Time and memory", ["step", "s", "GB"], steps, note)


def _of_scores(scores: dict) -> ResultTable:
    metrics = {"pearson_delta": "PearsonDelta ↑", "pearson_delta_pert": "-pert ↑", "delta20": "Delta20 ↑"}
    metrics |= {"mae": "MAE ↓", "discrimination_l1": "discr. L1 ↑", "e_distance": "E-distance ↓", "mmd2": "MMD2 ↓"}
    models = scores.get("models") or {"the head": scores["model"]}
    rows = [[f"**{name}**", *_row(row, metrics)] for name, row in models.items()]
    rows += [[name, *_row(row, metrics)] for name, row in scores["baselines"].items()]
    number = scores["settings"]["test_perturbations"]
    note = f"Means over {number} test perturbations, [95% bootstrap interval]; by `evaluate.py perturb`."
    return ResultTable("Scores", ["method", *metrics.values()], rows, note)


def _row(row: dict, metrics: dict[str, str]) -> list[str]:
    cells = []
    for metric in metrics:
        value, interval = row[metric], row["interval"][metric]
        between = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval and metric.startswith("pearson") else ""
        cells.append("n/a" if value is None else f"{value:.3f}{between}")
    return cells


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
