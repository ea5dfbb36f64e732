"""One measurement of benchmarks/loader.py in a process of its own: FOLDER PATH BATCH_SIZE AMOUNT; prints JSON."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import torch
from loader_paths import (
    hf_batches,
    hf_collated,
    hf_rows,
    one_epoch,
    our_loader,
    raw_decode,
    seconds_to_first_batch,
)

from mdsc.data.shards import ShardFolder

RECORD_EVERY = 20


def cells_read(folder: ShardFolder, path: str, batch_size: int) -> Iterator[int]:
    if path.startswith("ours"):
        return one_epoch(folder, batch_size, int(path[-1]) if path[-1].isdigit() else 0)
    if path == "hf-collated":
        return hf_collated(folder, batch_size)
    return {"raw": raw_decode, "hf-rows": hf_rows, "hf-batches": hf_batches}[path](folder)


def timed(folder: ShardFolder, path: str, batch_size: int, num_cells: int) -> dict[str, float]:
    """Cells, wall and CPU seconds of reading at least `num_cells`, after a warm-up that imports and compiles."""
    for warm_up in (True, False):
        wall, cpu, cells = time.perf_counter(), cpu_seconds(), 0
        for number in cells_read(folder, path, batch_size):
            cells += number
            if warm_up or cells >= num_cells:
                break
    return {"cells": cells, "wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    """Of this process and its descendants, those included that have ended and been waited for."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        used = process.cpu_times()
        total += used.user + used.system + used.children_user + used.children_system
    return total


def memory(folder: ShardFolder, batch_size: int, workers: int) -> list[dict]:
    """Resident MiB of each process every few steps of an epoch."""
    loader = our_loader(folder, batch_size, workers)
    batches, trace = loader.iterate(), []
    for step in range(loader.steps_per_epoch):
        next(batches)
        if step % RECORD_EVERY == 0:
            pids = [child.pid for child in multiprocessing.active_children()]
            names = {"training process": os.getpid()} | {f"worker {place}": pid for place, pid in enumerate(pids)}
            trace.append({"step": step, "mib": {name: rss(pid) for name, pid in names.items()}})
    batches.close()
    return trace


def rss(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


if __name__ == "__main__":
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    path, way, batch_size, amount = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if way == "start":
        measured = {"wall": seconds_to_first_batch(path, batch_size, amount)}
    elif way.startswith("memory"):
        measured = {"memory": memory(ShardFolder.open(path), batch_size, int(way[-1]))}
    else:
        measured = timed(ShardFolder.open(path), way, batch_size, int(amount))
    print(json.dumps(measured), flush=True)
    os._exit(0)  # the readers of a stream that was not read to its end may keep a process from ending
