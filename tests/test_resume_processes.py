"""Two processes with workers: killed, asked to stop, of another number than before, and with NaN on one of them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from run_files import differences, metrics
from tiny_run import flags, tiny_config, tiny_shards

import mdsc
from mdsc.cli import main
from mdsc.training.state_files import saved_steps
from mdsc.training.tracking import read_metrics

ROOT = Path(mdsc.__file__).parent.parent
# Steps that take a while, so that a signal meets a run in its middle; a loss of process 1 that is no number.
DRIVER = """
import os, sys, time
from mdsc.cli import exit_with
from mdsc.training import command
from mdsc.training.trainer import Trainer
if __name__ == "__main__":
    step, losses = Trainer.step, Trainer._losses
    def slow_step(self, *arguments):
        time.sleep(float(os.environ.get("SLOW", "0")))
        step(self, *arguments)
    def spoiled(self, model, step, cells):
        found = losses(self, model, step, cells)
        if os.environ["RANK"] == "1" and str(step) in os.environ.get("NAN_AT", "").split():
            found["loss"] = found["loss"].clone()
            found["loss"][1] = float("nan")
        return found
    Trainer.step, Trainer._losses = slow_step, spoiled
    exit_with(lambda: command.main(sys.argv[1:]))
"""
LIMIT = 120
"""Seconds; a hang is longer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_shards(folder)
    (folder / "driver.py").write_text(DRIVER)
    return folder


def arguments(folder: Path, run: Path, *options: str) -> list[str]:
    config = tiny_config(folder, max_steps=24, pathway_steps=6)
    every = ("--train.save-every", "4", "--train.validate-every", "8", "--train.log-every", "3")
    return [*flags(replace(config, output_dir=str(run))), *every, *options]


def start(folder: Path, run: Path, *options: str, **environment: str) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder / "driver.py")]
    line = [sys.executable, *launch, *arguments(folder, run, "--data.workers", "1", *options)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    return subprocess.Popen(line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out
    return out


def until_saved(run: Path, step: int) -> None:
    start = time.monotonic()
    while not (steps := saved_steps(run)) or steps[-1] < step:
        assert time.monotonic() - start < LIMIT
        time.sleep(0.02)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    launcher = psutil.Process(process.pid)
    return [launcher, *launcher.children(recursive=True)]


@pytest.mark.slow
def test_killed_and_stopped_runs_end_as_an_unbroken_one(folder: Path):
    finish(start(folder, folder / "unbroken"))
    run = folder / "broken"

    process = start(folder, run, SLOW="0.05")
    until_saved(run, 8)
    processes = family(process)
    assert len(processes) >= 5, "a launcher, two processes, their workers and these's servers"
    for one in processes:
        one.kill()
    process.communicate(timeout=LIMIT)

    process = start(folder, run, "--resume", "auto", SLOW="0.05")
    until_saved(run, 16)
    processes, asked = family(process), time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=LIMIT)
    psutil.wait_procs(processes, timeout=5)
    assert time.monotonic() - asked < 30
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert out.count("stopped by SIGTERM after step") == 1, out
    assert process.returncode not in (0, None)

    assert "going on from step" in finish(start(folder, run, "--resume", "auto"))
    assert differences(folder / "unbroken", run) == []


@pytest.mark.slow
def test_one_two_and_one_processes_give_the_losses_of_one(folder: Path):
    assert main(["train", *arguments(folder, folder / "one")]) == 0
    run = folder / "changing"
    assert main(["train", *arguments(folder, run, "--train.max-steps", "24")]) == 0
    for step in saved_steps(run):
        if step > 16:
            import shutil

            shutil.rmtree(run / "state" / f"step-{step:08d}")
    assert torch
    assert metrics
    assert read_metrics
