"""SIGTERM and SIGINT at any place of a run: it saves, ends with 128 + signal, and can be gone on with."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from run_files import differences
from tiny_run import flags, tiny_config, tiny_shards

from mdsc.checkpoint import load_checkpoint
from mdsc.cli import main
from mdsc.errors import UserError
from mdsc.training import masked_task, run_saver, stop_signals
from mdsc.training.run_lock import RunLock
from mdsc.training.state_files import saved_steps
from mdsc.training.stop_signals import StopSignals


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    tiny_shards(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Path:
    assert train(folder, folder / "unbroken") == 0
    return folder / "unbroken"


def train(folder: Path, run: Path, *options: str) -> int:
    config = tiny_config(folder, max_steps=8, log_every=3)
    every = ("--train.save-every", "4", "--train.validate-every", "3")
    return main(["train", *flags(replace(config, output_dir=str(run))), *every, *options])


def signalling(act, number: int, *, at_call: int):
    """`act`, but at one of its calls the process gets a signal first."""
    calls = []

    def acts(*arguments, **options):
        calls.append(1)
        if len(calls) == at_call:
            os.kill(os.getpid(), number)
        return act(*arguments, **options)

    return acts


@pytest.mark.parametrize(
    ("number", "place", "name", "at_call", "steps"),
    [
        pytest.param(signal.SIGINT, masked_task.MaskedTask, "losses", 6, [4, 5], id="in-a-step"),
        pytest.param(signal.SIGTERM, masked_task, "validate", 1, [0], id="first-validation"),
        pytest.param(signal.SIGTERM, masked_task, "validate", 2, [3], id="validation"),
        pytest.param(signal.SIGTERM, masked_task, "validate", 4, [4, 8], id="last-validation"),
        pytest.param(signal.SIGINT, run_saver, "save_file", 1, None, id="saving-interrupted"),
        pytest.param(signal.SIGTERM, run_saver, "save_file", 1, None, id="saving"),
    ],
)
def test_a_signal_saves_and_ends(
    folder: Path,
    unbroken: Path,
    tmp_path: Path,
    capsys,
    monkeypatch,
    number: int,
    place,
    name: str,
    at_call: int,
    steps,
):
    run, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, signalling(getattr(place, name), number, at_call=at_call))
        code = train(folder, run)
    assert signal.getsignal(number) == before
    out = capsys.readouterr().out
    assert code == 128 + number
    step = saved_steps(run)[-1]
    (told,) = [line for line in out.splitlines() if line.startswith("stopped by")]
    assert told == (
        f"stopped by {signal.Signals(number).name} after step {step} of 8, which is saved: "
        "the same command with --resume auto goes on"
    )
    load_checkpoint(run)
    if steps is not None:
        assert saved_steps(run) == steps
    assert train(folder, run, "--resume", "auto") == 0
    assert differences(unbroken, run) == []


def test_a_second_signal_ends_at_once():
    code = (
        "import signal, time\nfrom mdsc.training.stop_signals import StopSignals\n"
        "with StopSignals() as stop:\n    print(stop.number, flush=True)\n"
        "    time.sleep(1) if stop.number else None\n    [time.sleep(0.1) for _ in range(300)]\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment())
    assert process.stdout.readline() == b"0\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert time.monotonic() - start < 5
    process.stdout.close()


def environment() -> dict[str, str]:
    root = Path(stop_signals.__file__).parents[2]
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def test_a_launcher_that_dies_is_a_sigterm(monkeypatch):
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(stop_signals, "_launchers", lambda: [stop_signals.psutil.Process(launcher.pid)])
    monkeypatch.setattr(stop_signals, "WATCH", 0.05)
    with StopSignals() as stop:
        time.sleep(0.2)
        assert stop.number == 0
        launcher.kill()
        launcher.wait()
        time.sleep(0.3)
        assert stop.number == signal.SIGTERM


def test_a_launcher_is_known_by_its_command_line(monkeypatch):
    class Process(stop_signals.psutil.Process):
        def __init__(self, *command: str):
            self.command = command

        def cmdline(self) -> list[str]:
            return list(self.command)

        def parents(self) -> list["Process"]:
            return chain

    chain = [
        Process("python", "-m", "torch.distributed.run", "train.py"),
        Process("/usr/bin/python", "/venv/bin/accelerate", "launch", "train.py"),
        Process("bash", "-c", "accelerate launch train.py"),
        Process("accelerate", "launch"),
    ]
    monkeypatch.setattr(stop_signals.psutil, "Process", lambda: chain[0])
    assert stop_signals._launchers() == chain[:2]


def test_two_runs_do_not_write_one_folder(tmp_path: Path):
    said = []
    with RunLock(tmp_path, said.append) as one, RunLock(tmp_path, said.append, 0.3) as other:
        one.take()
        with pytest.raises(UserError, match="is being written by another process"):
            other.take()
        assert len(said) == 1
    with RunLock(tmp_path, said.append, 0.0) as next_one:
        next_one.take()
    with RunLock(tmp_path / "new", said.append) as one, RunLock(tmp_path / "new", said.append, 0.1) as other:
        one.take()
        (tmp_path / "new").mkdir()
        one.take()
        with pytest.raises(UserError):
            other.take()
