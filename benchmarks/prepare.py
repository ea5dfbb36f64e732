"""What preparing an h5ad file costs: peak memory and cells per second, for a file of simulated counts of any size.

    python benchmarks/prepare.py --num-cells 500000 --num-genes 3000

The file is written chunk by chunk and then prepared by `data_prep/h5ad.py` in a process of its own, whose resident
memory is watched from outside, all its workers included. Then `mdsc shards-to-h5ad` takes all cells back.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro
from real_cells import ROOT
from result_tables import ResultTable, write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.data.h5ad_writer import H5adWriter
from mdsc.errors import UserError

if TYPE_CHECKING:
    import scipy.sparse as sp

CHUNK_CELLS = 10_000
SECONDS_BETWEEN_LOOKS = 0.05
MDSC = ("-c", "from mdsc.cli import run; run()")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    num_cells: int = 500_000
    """Cells of each file."""
    num_genes: int = 3000
    """Genes of each file."""
    density: float = 0.1
    """Share of counts above zero."""
    num_files: int = 1
    """Files, all alike in size."""
    num_workers: tuple[int, ...] = (1,)
    """Numbers of processes to try."""
    work_dir: Path = Path("runs/benchmark_prepare")
    """Folder for the files; what it holds is removed in the end."""
    json: Path | None = None
    """File for the numbers."""
    markdown: Path | None = None
    """File for the table."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(BenchmarkConfig, args=argv, description=__doc__)
    folder = config.work_dir.resolve()
    paths = [folder / f"cells{number}.h5ad" for number in range(config.num_files)]
    shards, back = folder / "shards", folder / "back.h5ad"
    try:
        for number, path in enumerate(paths):
            write_cells(path, config, seed=number)
        command = ["data_prep/h5ad.py", *map(str, paths), "--output-dir", str(shards), "--condition-columns", "drug"]
        command += ["--heldout-fraction", "0.1"]
        runs = []
        for workers in config.num_workers:
            flags = ["--num-workers", str(workers)]
            runs.append({"step": f"h5ad.py, {workers} process{'es' * (workers > 1)}", **watched([*command, *flags])})
        runs.append(
            {"step": "shards-to-h5ad", **watched([*MDSC, "shards-to-h5ad", str(shards), "--output", str(back)])}
        )
        size = sum(path.stat().st_size for path in paths) / 1e9
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    total = config.num_files * config.num_cells
    rows = [
        [run["step"], f"{run['seconds']:,.0f}", f"{total / run['seconds']:,.0f}", f"{run['peak_bytes'] / 1e6:,.0f}"]
        for run in runs
    ]
    title = f"{total:,} cells x {config.num_genes:,} genes in {config.num_files} file{'s' * (config.num_files > 1)}"
    note = f"{config.density:.0%} of the counts are above zero; the input has {size:.1f} GB."
    table = ResultTable(title, ("step", "seconds", "cells/s", "peak MB"), rows, note)
    table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps({"cells": total, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        introduction = "Time and greatest resident memory (of all processes together) of the way to shards and back."
        write_markdown(config.markdown, "Preparing cells", introduction, [table])


def write_cells(path: Path, config: BenchmarkConfig, seed: int) -> None:
    """An h5ad file with two columns that are needed by nobody beside `drug`."""
    rng = np.random.default_rng(seed)
    genes = [f"GENE{gene:05d}" for gene in range(config.num_genes)]
    with H5adWriter(path, ("drug", "note", "barcode"), {"gene_ids": [""] * len(genes)}, genes) as writer:
        for start in range(0, config.num_cells, CHUNK_CELLS):
            counts = sparse_counts(rng, min(CHUNK_CELLS, config.num_cells - start), config)
            names = [f"file{seed}-cell{start + row:09d}" for row in range(counts.shape[0])]
            drug = rng.choice(["DMSO", "A", "B"], len(names)).astype(object)
            columns = {"drug": drug, "note": np.array([f"note on {n}" for n in names], dtype=object)}
            writer.write(counts, columns | {"barcode": np.array(names, dtype=object)}, names)


def sparse_counts(rng: np.random.Generator, num_cells: int, config: BenchmarkConfig) -> "sp.csr_matrix":
    """Counts 1, 2, ... (geometric) at genes drawn evenly."""
    import scipy.sparse as sp

    number = round(config.density * config.num_genes)
    step = config.num_genes / number
    # One gene in each of as many equal stretches: ascending and without repeats.
    genes = (np.arange(number) * step + rng.random((num_cells, number)) * (step - 1)).astype(np.int32)
    counts = rng.geometric(0.5, (num_cells, number)).astype(np.int32)
    indptr = np.arange(num_cells + 1) * number
    return sp.csr_matrix((counts.ravel(), genes.ravel(), indptr), (num_cells, config.num_genes))


def watched(command: list[str]) -> dict[str, float]:
    """Run one of the project's commands; seconds, and the greatest resident memory of it and its children."""
    import psutil

    start, peak = time.monotonic(), 0
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    while child.poll() is None:
        peak = max(peak, sum(map(resident, family(process))))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if child.returncode:
        raise UserError(f"{command[0]} ended with exit code {child.returncode}; see above")
    return {"seconds": time.monotonic() - start, "peak_bytes": peak}


def family(process) -> list:
    import psutil

    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident(process) -> int:
    import psutil

    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
