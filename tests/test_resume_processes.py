"""Two processes: killed, asked to stop, more or fewer than before, and with a loss that is no number on one of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from forked_runs import LIMIT, ForkServer
from run_files import differences, metrics
from tiny_run import flags, tiny_config, tiny_shards

import mdsc
from mdsc.checkpoint import load_checkpoint
from mdsc.training.finite_guard import PATIENCE
from mdsc.training.state_files import saved_steps, state_folder
from mdsc.training.tracking import read_metrics

ROOT = Path(mdsc.__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_shards(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(folder: Path, server: ForkServer) -> Path:
    server.finish(folder, arguments(folder, folder / "unbroken"))
    return folder / "unbroken"


def arguments(folder: Path, run: Path, *options: str) -> list[str]:
    config = tiny_config(folder, max_steps=24, pathway_steps=6)
    every = ("--train.save-every", "3", "--train.validate-every", "8", "--train.log-every", "4")
    return [*flags(replace(config, output_dir=str(run))), *every, *options]


def until_saved(run: Path, step: int) -> None:
    start = time.monotonic()
    while not (steps := saved_steps(run)) or steps[-1] < step:
        assert time.monotonic() - start < LIMIT
        time.sleep(0.01)


def test_killed_runs_end_as_an_unbroken_one(folder: Path, server: ForkServer, unbroken: Path, tmp_path: Path):
    """Kill -9 at three moments, one while nothing is saved yet, and one of one process alone."""
    run = tmp_path / "run"
    for step, wait in ((0, 0.0), (6, 0.02), (15, 0.05)):
        process = server.start(folder, arguments(folder, run, "--resume", "auto"), SLOW="0.03")
        until_saved(run, step) if step else time.sleep(1)
        time.sleep(wait)
        process.kill(ranks=(1,) if step == 15 else (0, 1))
        codes = process.wait()
        assert codes[1] == -signal.SIGKILL
        assert codes[0], "a process that has lost its partner ends, too"
    said = server.finish(folder, arguments(folder, run, "--resume", "auto"))
    assert "going on from step" in said
    assert differences(unbroken, run) == []


def test_a_signal_to_one_process_stops_both_after_one_step(
    folder: Path, server: ForkServer, unbroken: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = server.start(folder, arguments(folder, run), SLOW="0.03")
    until_saved(run, 3)
    process.kill(signal.SIGTERM, ranks=(1,))
    assert process.wait() == [128 + signal.SIGTERM] * 2, process.said()
    assert process.said().count(f"stopped by SIGTERM after step {saved_steps(run)[-1]} of 24") == 1
    load_checkpoint(run)
    server.finish(folder, arguments(folder, run, "--resume", "auto"))
    assert differences(unbroken, run) == []


def test_one_two_and_one_processes_give_the_losses_of_one(folder: Path, server: ForkServer, tmp_path: Path):
    one, run, all_kept = tmp_path / "one", tmp_path / "changing", ("--train.keep-last", "9")
    server.finish(folder, arguments(folder, one, *all_kept), processes=1)
    shutil.copytree(one, run)
    for begin, processes in ((9, 2), (18, 1)):
        for step in saved_steps(run):
            if step > begin:
                shutil.rmtree(state_folder(run, step))
        options = (*all_kept, "--resume", "auto")
        said = server.finish(folder, arguments(folder, run, *options), processes=processes)
        assert f"going on from step {begin}:" in said
        assert f"{processes} x cpu" in said
    assert metrics(run) != metrics(one), "two processes round otherwise: else nothing was tested"
    for mine, theirs in zip(metrics(run), metrics(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-12)


def test_four_processes_sum_in_the_same_order_after_a_restart(folder: Path, server: ForkServer, tmp_path: Path):
    one, run, options = tmp_path / "one", tmp_path / "run", ("--train.max-steps", "9")
    server.finish(folder, arguments(folder, one, *options), processes=4)
    shutil.copytree(one, run)
    for step in (6, 9):  # the pathway's phase ends with step 6
        shutil.rmtree(state_folder(run, step))
    server.finish(folder, arguments(folder, run, "--resume", "auto", *options), processes=4)
    assert differences(one, run) == []


def test_a_loss_that_is_no_number_on_one_process_moves_none(
    folder: Path, server: ForkServer, tmp_path: Path, unbroken: Path
):
    """A run of 10 steps: step 3's batch is bad on process 1, and named; the next ones are trained on."""
    run = tmp_path / "run"
    options = ("--train.max-steps", "10", "--train.save-every", "1", "--train.keep-last", "10")
    said = server.finish(folder, arguments(folder, run, *options), NAN_AT="3")
    weights = [state_folder(run, step) / "training.safetensors" for step in (3, 4, 5)]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    (event,) = [line for line in read_metrics(run) if "event" in line]
    assert (event["step"], event["event"], event["cause"]) == (4, "not_finite", "loss")
    # Process 1 has lanes 1 and 3 of 4, so that its second cell is the second of lane 1.
    assert event["cells"] == [5]
    assert event["addresses"][0].startswith("lane 1, ")
    assert (
        said.count(f"warning: the loss is not finite, no weight is changed: step 4, cells 5 ({event['addresses'][0]}")
        == 1
    )
    assert [line["skipped_steps"] for line in read_metrics(run) if "loss" in line] == [1, 1, 1]

    stopping = tmp_path / "stopping"
    process = server.start(folder, arguments(folder, stopping), NAN_AT=" ".join(map(str, range(5, 24))))
    assert process.wait() == [2, 2]
    step = 5 + PATIENCE
    assert f"training stopped at step {step}: the loss or a gradient was not finite {PATIENCE} times" in process.said()


@pytest.mark.slow
def test_sigterm_to_the_launcher_ends_all_and_leaves_a_good_run(
    folder: Path, server: ForkServer, unbroken: Path, tmp_path: Path
):
    """As a user types it, with workers; half-way the launcher alone is told."""
    run = tmp_path / "run"
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    line = [sys.executable, *launch, str(ROOT / "train.py"), *arguments(folder, run, "--data.workers", "1")]
    line += ["--train.max-steps", "100000", "--train.save-every", "100000"]
    process = subprocess.Popen(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    begin = time.monotonic()
    while len(read_metrics(run) if (run / "metrics.jsonl").is_file() else ()) < 4:
        assert time.monotonic() - begin < LIMIT
        time.sleep(0.05)
    launcher = psutil.Process(process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    assert len(family) >= 6, "two launchers, two processes, their workers and these's servers"
    asked = time.monotonic()
    process.terminate()
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(family[1:], timeout=30)
    assert not alive
    assert time.monotonic() - asked < 30
    load_checkpoint(run)
    assert saved_steps(run)
