"""What benchmarks/gpu.py measures by training: the loader feeding a GPU, a resumed run, minutes of steady training."""

import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from finished_steps import once
from gpu_stages import ROOT, Keep, Plan

SECONDS_TO_END = 45.0
"""Kept back of the time of a steady run, for its last state to be written."""
WATCH_EVERY = 5.0


def loader(plan: Plan, keep: Keep) -> dict:
    """Cells a second of training with cells that are there already, and with the loader; and of the loader alone."""
    from tahoe_cells import write_tahoe_cells

    number = 2000 if plan.dry_run else 56_000
    shards = Path(plan.work_dir) / f"tahoe-{number}"
    facts = once(shards.with_suffix(".json"), {"cells": number}, lambda: write_tahoe_cells(shards, number))
    result = {"cells": facts["result"], "seconds_to_simulate": facts["seconds"], "runs": []}
    for size, workers in (("tiny", 0), ("tiny", 1)) if plan.dry_run else (("base", 4), ("small", 4), ("small", 0)):
        result["runs"].append({"size": size, "workers": workers} | _fed(plan, shards, size, workers))
        keep(result)
    return result


def _fed(plan: Plan, shards: Path, size: str, workers: int) -> dict:
    from train_step_variants import Shape, mdsc_model

    from mdsc.data.loader import CellLoader
    from mdsc.data.shards import ShardFolder
    from mdsc.data.tokenizers import make_tokenizer
    from mdsc.training.masked_task import MaskedTask
    from mdsc.training.progress import RunProgress
    from mdsc.training.sharding import make_accelerator
    from mdsc.training.trainer import Trainer

    seconds = 1.0 if plan.dry_run else 12.0
    small = ["--data.num-genes", "32", "--train.global-batch-size", "16", "--data.num-lanes", "4"]
    large = [
        "--train.global-batch-size",
        "256",
        "--train.batch-size",
        "32",
        "--data.num-lanes",
        "16",
        "--train.compile",
    ]
    flags = ["--data.workers", str(workers), "--train.pathway-steps", "0", *(small if plan.dry_run else large)]
    config = _config(size, shards, Path(plan.work_dir) / "unused", *flags)
    folder, tokenizer, accelerator = ShardFolder.open(shards), make_tokenizer("rank"), make_accelerator()
    cells = CellLoader(
        folder, tokenizer, config.data, seed=0, global_batch_size=config.train.global_batch_size, levels={}
    )
    sizes = config.model
    shape = Shape(
        sizes.hidden_size, sizes.num_layers, sizes.num_heads, sizes.state_size, config.data.num_genes, 1,
        len(folder.vocabulary),
    )  # fmt: skip
    torch.manual_seed(0)
    model = mdsc_model(shape, tokenizer.num_tokens, "sdpa")  # nothing is fitted: it is for speed alone
    task = MaskedTask(config, accelerator, model, tokenizer, cells.validation_batch(4))
    trainer = Trainer(config, accelerator, model, task, progress=RunProgress(1, show=False))
    with closing(cells.iterate(0, trainer.device)) as batches:
        first = next(batches).to(trainer.device)
        same = _rate(trainer, itertools.repeat(first), seconds)
        fed = _rate(trainer, batches, seconds)
        start, number = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            number += len(next(batches))
        alone = number / (time.perf_counter() - start)
    return {"resident": same, "fed": fed, "loader_alone": alone}


def _rate(trainer, batches: Iterator, seconds: float, warm_up: int = 3) -> float:
    """Cells a second; the GPU is waited for at the end of every few steps."""
    done, cells, start = 0, 0, 0.0
    while not start or time.perf_counter() - start < seconds:
        if done == warm_up:
            _wait(trainer.device)
            start, cells = time.perf_counter(), 0
        batch = next(batches).to(trainer.device, non_blocking=True)
        trainer.step(trainer.done, batch)
        trainer.done += 1
        trainer._hear()
        done, cells = done + 1, cells + len(batch)
        if done % 4 == 0:
            _wait(trainer.device)
    _wait(trainer.device)
    return cells / (time.perf_counter() - start)


def resume(plan: Plan, keep: Keep) -> dict:
    """A run that goes on from its middle, beside the run that nobody stopped, on this device."""
    from mdsc.cli import main
    from mdsc.training.state_files import TENSORS, saved_steps, state_folder
    from mdsc.training.step_averages import CLOCKED
    from mdsc.training.tracking import read_metrics

    work = Path(plan.work_dir) / "resume"
    shutil.rmtree(work, ignore_errors=True)
    shards = _simulated(plan, "resume-shards", cells=400 if plan.dry_run else 4000, genes=60 if plan.dry_run else 2000)
    run, resumed = work / "unbroken", work / "resumed"
    options = {
        "data.num-lanes": 4, "train.max-steps": 12, "train.pathway-steps": 4, "train.warmup-steps": 2,
        "train.global-batch-size": 16 if plan.dry_run else 64, "train.batch-size": 8 if plan.dry_run else 32,
        "train.log-every": 1, "train.validate-every": 6, "train.save-every": 6, "validation.num-cells": 16,
    }  # fmt: skip
    flags = ["train", "--config", str(_yaml("tiny" if plan.dry_run else "small")), "--data.dir", str(shards)]
    flags += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    codes = [main([*flags, "--output-dir", str(run)])]
    shutil.copytree(run, resumed)
    shutil.rmtree(state_folder(resumed, 12))
    codes.append(main([*flags, "--output-dir", str(resumed), "--resume", "auto"]))
    lines = [
        [{name: value for name, value in line.items() if name not in CLOCKED} for line in read_metrics(one)]
        for one in (run, resumed)
    ]
    files = [(state_folder(one, saved_steps(one)[-1]) / TENSORS).read_bytes() for one in (run, resumed)]
    losses = [[line["loss"] for line in one if "loss" in line] for one in lines]
    return {
        "exit_codes": codes,
        "went_on_from": 6,
        "metrics_equal": lines[0] == lines[1],
        "weights_and_moments_equal": files[0] == files[1],
        "largest_relative_difference_of_losses": max(
            abs(mine - theirs) / abs(theirs) for mine, theirs in zip(*losses, strict=True)
        ),
    }


def stability(plan: Plan, keep: Keep) -> dict:
    """Training as a user starts it, for as long as there is time; a later call goes on where this one has stopped."""
    shards = _simulated(plan, "shards", cells=1000 if plan.dry_run else 30_000, genes=100 if plan.dry_run else 4096)
    run = Path(plan.work_dir) / "stability"
    options = {
        "data.num-lanes": 4 if plan.dry_run else 16, "data.workers": 0 if plan.dry_run else 4,
        "train.max-steps": 100_000, "train.pathway-steps": 0, "train.warmup-steps": 5 if plan.dry_run else 200,
        "train.global-batch-size": 16 if plan.dry_run else 256, "train.batch-size": 8 if plan.dry_run else 32,
        "train.log-every": 5, "train.validate-every": 500, "train.save-every": 500, "validation.num-cells": 64,
        "train.keep-last": 1,
    }  # fmt: skip
    size = "tiny" if plan.dry_run else "base"
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(_yaml(size)), "--data.dir", str(shards)]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command += ["--output-dir", str(run), "--resume", "auto", *([] if plan.dry_run else ["--train.compile"])]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    begin, end = time.monotonic(), plan.deadline - (8 if plan.dry_run else SECONDS_TO_END)
    watched: list[dict[str, float]] = []
    try:
        while time.monotonic() < end and process.poll() is None:
            time.sleep(min(WATCH_EVERY, max(end - time.monotonic(), 0)))
            watched.append({"seconds": time.monotonic() - begin} | _memory(process.pid, plan.device))
            keep(told := _told(run, size, watched) | {"exit_code": None})
            if plan.dry_run and "steps" in told:
                break
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    told = _told(run, size, watched) | {"exit_code": code}
    return told if "steps" in told else told | {"failure": "it had no time to train, or could not: see the output"}


def _told(run: Path, size: str, watched: list[dict[str, float]]) -> dict:
    """What metrics.jsonl and run.json say of the whole run, earlier calls included."""
    from mdsc.training.run_record import starts_of
    from mdsc.training.tracking import read_metrics

    lines = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    steps = [line for line in lines if "nll" in line and "event" not in line]
    told: dict = {"size": size, "watched": watched, "started_from": [start["from_step"] for start in starts_of(run)]}
    if len(steps) >= 4:
        quarter = len(steps) // 4
        first, last = ([line["loss"] for line in part] for part in (steps[:quarter], steps[-quarter:]))
        told |= {
            "steps": steps[-1]["step"],
            "skipped_steps": steps[-1]["skipped_steps"],
            "loss_spikes": steps[-1]["loss_spikes"],
            "lines_that_are_not_finite": sum(None in line.values() for line in steps),
            "loss_of_first_quarter": statistics.fmean(first),
            "loss_of_last_quarter": statistics.fmean(last),
        }
        for name in ("cells_per_second", "model_flops_per_second", "mfu"):
            found = [line[name] for line in steps[1:] if line.get(name)]
            told[name] = statistics.median(found) if found else None
        told["training_seconds"] = sum(
            (line["step"] - before["step"]) * _cells(run) / line["cells_per_second"]
            for before, line in itertools.pairwise([{"step": 0}, *steps])
            if line["cells_per_second"]
        )
    return told


def _cells(run: Path) -> int:
    from mdsc.training.run_record import starts_of

    return starts_of(run)[-1]["options"]["train"]["global_batch_size"]


def _memory(pid: int, device: str) -> dict[str, float]:
    """MiB: resident of the training process, and in use on the GPU by all processes together."""
    found = {}
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found["resident_mib"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        pass
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found["gpu_mib"] = (total - free) / 2**20
    return found


def _simulated(plan: Plan, name: str, *, cells: int, genes: int) -> Path:
    from mdsc.prep.simulate import simulate_shards
    from mdsc.prep.simulated_cells import SimulationConfig, Truth

    folder = Path(plan.work_dir) / f"{name}-{cells}-{genes}"
    if not (folder / "manifest.json").is_file():
        simulate_shards(Truth.of(SimulationConfig(num_cells=cells, num_genes=genes)), folder)
    return folder


def _config(size: str, shards: Path, run: Path, *flags: str):
    from mdsc.config.schema import TrainConfig
    from mdsc.config.yaml_flags import parse

    places = ["--data.dir", str(shards), "--output-dir", str(run)]
    return parse(TrainConfig, ["--config", str(_yaml(size)), *places, *flags])


def _yaml(size: str) -> Path:
    from mdsc.config.shipped import shipped_config

    return Path(shipped_config(size))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
