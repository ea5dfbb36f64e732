"""Cells that stream through sample.py: memory and speed over their number, a run that is killed half-way, other jobs.

    python benchmarks/stream.py --input mouse_brain_10k.h5ad --checkpoint runs/mouse --markdown stream.md

The checkpoint is a run that was trained on such cells. Each job is a process of its own, whose resident memory is
watched from outside. Exit code 0 if the killed run's end is the unbroken one's to the bit.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro
from prepare import SECONDS_BETWEEN_LOOKS, resident, sparse_counts
from prepare import BenchmarkConfig as SimulatedCells
from real_cells import ROOT
from result_tables import ResultTable, write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.data.anndata_counts import open_counts
from mdsc.data.h5ad_writer import H5adWriter
from mdsc.errors import UserError

DENSE = 20_000


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    input: Path
    """h5ad file whose cells are repeated as often as it takes."""
    checkpoint: Path
    """Run that was trained on such cells."""
    num_cells: tuple[int, ...] = (2_500, 5_000, 10_000)
    """Sizes of the files; the largest one is killed half-way."""
    num_steps: int = 4
    """Steps of the sampler: memory is the same for any number."""
    work_dir: Path = Path("runs/benchmark_stream")
    """Folder for the files; what it holds is removed in the end."""
    json: Path | None = None
    """File for the numbers."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(StreamConfig, args=argv, description=__doc__)
    folder = config.work_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(config, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tables = [streaming_table(results), killed_table(results), other_table(results)]
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        introduction = (
            "Greatest resident memory of `sample.py --mask-ratio 0.8`, watched from outside, and what a kill costs. "
            f"Cells of {config.input.name}, repeated where more are needed; {config.num_steps} steps of the sampler."
        )
        write_markdown(config.markdown, "Streaming", introduction, tables)
    if not results["killed"]["same_bits"]:
        raise UserError("the run that was killed ended with other bits than the unbroken one")


def measure(config: StreamConfig, folder: Path) -> dict:
    def flags(source: Path, output: Path, *more: str) -> list[str]:
        files = ["--checkpoint", str(config.checkpoint.resolve()), "--input", str(source), "--output", str(output)]
        return [*files, "--mask-ratio", "0.8", *more]

    steps = ("--num-steps", str(config.num_steps))
    streaming = []
    for number in sorted(config.num_cells):
        source = folder / f"cells{number}.h5ad"
        repeat_cells(config.input, source, number)
        output = folder / f"filled{number}.h5ad"
        streaming.append({"cells": number, **sampled(flags(source, output, *steps)), **sizes(source, output)})
    killed = kill_half_way(flags(source, folder / "killed.h5ad", *steps), folder / "killed.h5ad", number)
    killed["same_bits"] = same_layers(folder / "killed.h5ad", output)
    first = folder / f"cells{min(config.num_cells)}.h5ad"
    write_dense(folder / "dense.h5ad", config.input)
    others = {
        "--num-draws 5 (with sd and three quantiles)": (
            min(config.num_cells), sampled(flags(first, folder / "draws.h5ad", *steps, "--num-draws", "5"))
        ),
        "--num-draws 0 --quantiles 0.05 0.5 0.95": (
            min(config.num_cells),
            sampled(flags(first, folder / "q.h5ad", "--num-draws", "0", "--quantiles", "0.05", "0.5", "0.95")),
        ),
        f"--num-cells {max(config.num_cells)} (generation)": (
            max(config.num_cells),
            sampled(["--checkpoint", str(config.checkpoint.resolve()), "--output", str(folder / "made.h5ad"), *steps,
                     "--num-cells", str(max(config.num_cells))]),
        ),
        f"dense {DENSE:,} x {DENSE:,} float32 --num-draws 0": (
            DENSE, sampled(flags(folder / "dense.h5ad", folder / "filled_dense.h5ad", "--num-draws", "0"))
        ),
    }  # fmt: skip
    return {"streaming": streaming, "killed": killed, "others": {k: {"cells": n, **v} for k, (n, v) in others.items()}}


def repeat_cells(source: Path, target: Path, number: int) -> None:
    with open_counts(source, obs_columns=()) as cells:
        counts = cells.read().counts
        with H5adWriter(target, (), {}, cells.var.index.astype(str).tolist()) as writer:
            for start in range(0, number, 1000):
                rows = np.arange(start, min(start + 1000, number))
                writer.write(counts[rows % counts.shape[0]], {}, [f"cell{row}" for row in rows])


def write_dense(path: Path, source: Path) -> None:
    """Counts of DENSE cells and genes, stored dense: 1.6 GB before compression; the first genes are the source's."""
    with open_counts(source, obs_columns=()) as cells:
        names = cells.var.index.astype(str).tolist()
    genes = [*names, *(f"OTHER{gene}" for gene in range(DENSE - len(names)))]
    with H5adWriter(path, (), {}, genes) as writer:  # for obs and var
        no_counts = sparse_counts(np.random.default_rng(0), DENSE, SimulatedCells(num_genes=DENSE, density=1 / DENSE))
        writer.write(no_counts, {}, [f"cell{row}" for row in range(DENSE)])
    with h5py.File(path, "r+") as file:
        del file["X"]
        dense = file.create_dataset("X", (DENSE, DENSE), np.float32, chunks=(16, DENSE), compression="lzf")
        dense.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        rng = np.random.default_rng(0)
        for start in range(0, DENSE, 500):
            part = sparse_counts(rng, 500, SimulatedCells(num_genes=DENSE, density=0.05))
            dense[start : start + 500] = part.toarray()


def sampled(flags: Sequence[str]) -> dict[str, float]:
    """Seconds, and greatest resident bytes, of sample.py with these flags."""
    import psutil

    start, peak = time.monotonic(), 0
    child = subprocess.Popen([sys.executable, "sample.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    while child.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if child.returncode:
        raise UserError(f"sample.py ended with exit code {child.returncode}; see above")
    return {"seconds": time.monotonic() - start, "peak_bytes": peak}


def kill_half_way(flags: Sequence[str], output: Path, num_cells: int) -> dict:
    """kill -9 once half of the cells are kept beside the output; then the same command again."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, "sample.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
    parts = output.with_name(f".{output.name}.parts")
    kept = 0
    while kept < num_cells // 2:
        if child.poll() is not None:
            raise UserError("sample.py ended before half of its cells were kept: give more cells or steps")
        kept = max([0, *(int(path.stem.partition("-")[2]) for path in parts.glob("*.safetensors"))])
        time.sleep(SECONDS_BETWEEN_LOOKS)
    child.send_signal(signal.SIGKILL)
    child.wait()
    seconds = time.monotonic() - start
    again = sampled(flags)
    return {"cells": num_cells, "killed_after": seconds, "kept": kept, **again}


def same_layers(one: Path, other: Path) -> bool:
    """Every number of the files, but for the path of the input that uns tells."""
    same = []

    def compare(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            same.append(np.array_equal(item[()], second[name][()]))

    with h5py.File(one) as first, h5py.File(other) as second:
        first.visititems(compare)
    return len(same) > 10 and all(same)


def sizes(source: Path, output: Path) -> dict[str, float]:
    with h5py.File(output) as file:
        mean = file["layers/mdsc_mean"]
        share = len(mean["data"]) / np.prod(mean.attrs["shape"], dtype=float)
        left_out = float(file["uns/mdsc/mean_left_out"][()])
    return {
        "input_bytes": source.stat().st_size, "output_bytes": output.stat().st_size, "mean_density": share,
        "mean_left_out": left_out,
    }  # fmt: skip


def streaming_table(results: dict) -> ResultTable:
    rows = [
        [
            f"{run['cells']:,}", f"{run['seconds']:,.0f}", f"{run['cells'] / run['seconds']:,.0f}",
            f"{run['peak_bytes'] / 1e6:,.0f}", f"{run['input_bytes'] / 1e6:,.1f}", f"{run['output_bytes'] / 1e6:,.1f}",
            f"{run['mean_density']:.1%}", f"{run['mean_left_out']:.2%}",
        ]
        for run in results["streaming"]
    ]  # fmt: skip
    columns = ("cells", "seconds", "cells/s", "peak MB", "input MB", "output MB", "kept in mdsc_mean", "left out of it")
    note = "Kept: share of cells x genes. Left out: share of the hidden counts that are expected (--mean-floor 0.01)."
    return ResultTable("Memory over the number of cells", columns, rows, note)


def killed_table(results: dict) -> ResultTable:
    run = results["killed"]
    row = [
        f"{run['cells']:,}", f"{run['killed_after']:,.0f}", f"{run['kept']:,}", f"{run['seconds']:,.0f}",
        f"{run['peak_bytes'] / 1e6:,.0f}", "yes" if run["same_bits"] else "NO",
    ]  # fmt: skip
    columns = ("cells", "killed after s", "cells kept", "rest took s", "peak MB", "same bits")
    return ResultTable("Killed half-way (kill -9), then given again", columns, [row])


def other_table(results: dict) -> ResultTable:
    rows = [
        [name, f"{run['cells']:,}", f"{run['seconds']:,.0f}", f"{run['peak_bytes'] / 1e6:,.0f}"]
        for name, run in results["others"].items()
    ]
    return ResultTable("Other jobs", ("job", "cells", "seconds", "peak MB"), rows)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
