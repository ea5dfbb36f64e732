"""How fast cells are read: the loader beside bare decoding and HF datasets; resuming; how batches mix plates; memory.

    python benchmarks/loader.py --markdown loader.md --json loader.json
    python benchmarks/loader.py --memory --memory-cells 1_000_000 --json memory.json --plot memory.png

Simulates cells in Tahoe-100M's format once. Each measurement is a process of its own with one thread (but for workers);
the ways to read take turns, and medians are reported. CPU time is that of the process and all its children.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from finished_steps import once
from plate_mixing import mixing
from result_tables import ResultTable, write_markdown
from tahoe_cells import repeated, write_tahoe_cells

from mdsc.atomic import replacing
from mdsc.cli import exit_with

MEASURE = Path(__file__).with_name("loader_measure.py")
RAW = "bare decoding of the two list columns (pyarrow)"
PATHS = {
    RAW: ("raw", 1.0),
    "mdsc, shuffled, numba": ("ours", 1.0),
    "mdsc, shuffled, numba, 1 worker": ("ours-1", 1.0),
    "mdsc, shuffled, numba, 2 workers": ("ours-2", 1.0),
    "mdsc, shuffled, numpy": ("ours-numpy", 1.0),
    "HF datasets, streamed batches of 1,000 (numpy)": ("hf-batches", 1.0),
    "HF datasets, streamed rows": ("hf-rows", 0.2),
    "HF datasets, streamed rows, collator a cell at a time": ("hf-collated", 0.04),
}
"""Name -> what loader_measure.py calls it, and the share of the cells that is enough to time it."""
STARTS = {"step 0": 0.0, "half of an epoch": 0.5, "end of an epoch": 1.0}
DEVICE_BATCH, LANES, WINDOWS = 128, 8, (8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class LoaderBenchmarkConfig:
    cells: int = 50_000
    """Simulated cells."""
    batch_size: int = 512
    """Cells a step (of configs/small.yaml), from 8 lanes."""
    repeats: int = 5
    """Times that each way is measured."""
    memory: bool = False
    """Record resident memory while reading, instead of timing."""
    memory_cells: int = 1_000_000
    """Cells for --memory: the simulated ones again and again, under other names."""
    work_dir: Path = Path("runs/loader")
    """Folder for the simulated cells."""
    json: Path | None = None
    """File for all measurements."""
    markdown: Path | None = None
    """File for the tables."""
    plot: Path | None = None
    """File for the picture of --memory."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(LoaderBenchmarkConfig, args=argv, description=__doc__)
    folder = config.work_dir.resolve() / f"cells-{config.cells}"
    settings = {"cells": config.cells, "format": 1}
    facts = once(folder.with_suffix(".json"), settings, lambda: write_tahoe_cells(folder, config.cells))["result"]
    result = {"cells": facts} | (memory(config, folder) if config.memory else times(config, folder))
    tables = memory_tables(result) if config.memory else time_tables(result)
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        introduction = (
            f"{facts['cells']:,} simulated cells in Tahoe-100M's format: {facts['nonzeros_per_cell']:,.0f} nonzero "
            f"genes of 62,710 a cell with a mean count of {facts['mean_nonzero_count']:.2f}, "
            f"{facts['bytes_per_cell']:,.0f} bytes a cell, row groups of 1,000, snappy."
        )
        write_markdown(config.markdown, "Reading cells", introduction, tables)


def times(config: LoaderBenchmarkConfig, folder: Path) -> dict:
    runs: dict[str, list[dict]] = {name: [] for name in PATHS}
    starts: dict[str, list[float]] = {name: [] for name in STARTS}
    for repeat in range(config.repeats):
        for name, (path, share) in PATHS.items():
            cells = max(config.batch_size, int(share * config.cells))
            runs[name].append(measure(folder, path, config.batch_size, cells))
            print(f"{repeat + 1}/{config.repeats} {name}: {runs[name][-1]}", flush=True)
        for name, share in STARTS.items():
            starts[name].append(measure(folder, "start", config.batch_size, share)["wall"])
    mixed = [vars(mixing(DEVICE_BATCH, LANES, window)) for window in WINDOWS]
    return {"runs": runs, "seconds_to_first_batch": starts, "mixing": mixed}


def measure(folder: Path, path: str, batch_size: int, amount: float) -> dict:
    """What loader_measure.py prints: {"cells", "wall", "cpu"} in seconds, or the memory in time."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "ARROW_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | threads | {"MDSC_NUMBA": "0" if path == "ours-numpy" else "1"}
    command = [sys.executable, str(MEASURE), str(folder), path, str(batch_size), str(amount)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def time_tables(result: dict) -> list[ResultTable]:
    rates = {
        name: [statistics.median(run["cells"] / run[clock] for run in runs) for clock in ("cpu", "wall")]
        for name, runs in result["runs"].items()
    }
    raw_cpu, raw_wall = rates[RAW]
    rows = [
        (name, f"{cpu:,.0f}", f"{cpu / raw_cpu:.3f}", f"{wall:,.0f}", f"{wall / raw_wall:.3f}")
        for name, (cpu, wall) in rates.items()
    ]
    mixed = [
        (str(mix["window"]), f"{mix['entropy']:.3f}", f"{mix['ideal']:.3f}", f"{mix['entropy'] / mix['ideal']:.1%}")
        for mix in result["mixing"]
    ]
    starts = [(name, f"{statistics.median(seconds):.2f}") for name, seconds in result["seconds_to_first_batch"].items()]
    return [
        ResultTable(
            "Cells per second",
            ("", "cells per CPU-second", "ratio", "cells per second", "ratio"),
            rows,
            "Median of repeats that take turns. An epoch from an empty cache; imports and compiling are left out.",
        ),
        ResultTable("Seconds to a first batch", ("starting at", "seconds"), starts, "Folder opened, all windows read."),
        ResultTable(
            f"Plates in a device batch of {DEVICE_BATCH} from {LANES} lanes, 14 plates in the order of the files",
            ("window", "entropy (bits)", "at random", "share"),
            mixed,
        ),
    ]


def memory(config: LoaderBenchmarkConfig, folder: Path) -> dict:
    many = config.work_dir.resolve() / f"cells-{config.memory_cells}-again"
    repeated(folder, many, config.memory_cells)
    traces = {path: measure(many, f"memory-{path}", config.batch_size, 1.0)["memory"] for path in ("0", "2")}
    if config.plot is not None:
        plot(traces, config.plot)
    return {"memory": traces}


def memory_tables(result: dict) -> list[ResultTable]:
    rows = []
    for workers, trace in result["memory"].items():
        for process in trace[0]["mib"]:
            late = [point["mib"][process] for point in trace if point["step"] >= 100] or [trace[-1]["mib"][process]]
            values = (max(point["mib"][process] for point in trace), late[0], late[-1])
            rows.append((f"{workers} workers, {process}", *(f"{value:,.0f}" for value in values)))
    return [ResultTable("Resident memory (MiB)", ("process", "highest", "at step 100", "at the end"), rows)]


def plot(traces: dict[str, list[dict]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for workers, trace in traces.items():
        for process in trace[0]["mib"]:
            values = [point["mib"][process] for point in trace]
            axes.plot([point["step"] for point in trace], values, label=f"{workers} workers, {process}")
    axes.set(xlabel="step", ylabel="resident memory (MiB)", ylim=(0, None))
    axes.legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
