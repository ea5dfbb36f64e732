"""Kill -9 a run of two processes with workers twenty times, saves included, and compare its end with an unbroken run's.

    python benchmarks/kill_resume.py [--kills 20] [--steps 300] [--seed 0] [--json out.json]

Exit code 0 if weights, averaged weights, moments and metrics (but for the clock's) are the same to the bit.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from safetensors import safe_open

from mdsc.prep.simulate import simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth
from mdsc.training.state_files import FOLDER, TENSORS, saved_steps, state_folder
from mdsc.training.step_averages import CLOCKED
from mdsc.training.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SAVE_EVERY = 10
LIMIT = 600.0


@dataclass(frozen=True)
class Kill:
    went_on_from: int | None
    """Step of the state that this part of the run began with."""
    aim: str
    """At what the kill was aimed: a step, or the writing of a state."""
    step: int
    """The last step that metrics.jsonl tells of."""
    was_saving: bool
    """A half-written state was left."""
    newest_state: int | None
    processes: int
    """That were killed."""


def command(shards: Path, run: Path, steps: int) -> list[str]:
    options = {
        "data.dir": shards, "data.num-lanes": 4, "data.workers": 1, "output-dir": run, "resume": "auto",
        "model.hidden-size": 32, "model.num-layers": 2, "model.num-heads": 2, "model.state-size": 8,
        "model.factor-size": 8, "model.dropout": 0.1,
        "train.max-steps": steps, "train.pathway-steps": steps // 3, "train.global-batch-size": 32,
        "train.log-every": 1, "train.validate-every": 25, "train.save-every": SAVE_EVERY, "validation.num-cells": 64,
    }  # fmt: skip
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    return [sys.executable, *launch, str(ROOT / "train.py"), *flags]


def started(line: list[str], log: Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(line, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)


def kill_all(process: subprocess.Popen) -> int:
    """The launchers, both processes, their workers: as when a machine goes down."""
    launcher = psutil.Process(process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    for one in reversed(family):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=30)
    return len(family)


def reached(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def wait_for(process: subprocess.Popen, condition, log: Path) -> None:
    begin = time.monotonic()
    while not condition():
        if process.poll() is not None or time.monotonic() - begin > LIMIT:
            raise SystemExit(f"the run ended, or hangs:\n{log.read_text()}")
        time.sleep(0.001)


def kill_at(line: list[str], run: Path, step: int, in_a_save: bool, chance: random.Random, log: Path) -> Kill:
    """Start, and kill at a chance moment after `step` steps, or while the state after them is being written."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None
    process = started(line, log)
    wait_for(process, lambda: metrics.exists() and metrics.stat().st_ino != before, log)  # later lines are cut off
    wait_for(process, lambda: reached(run) >= step, log)
    if in_a_save:
        wait_for(process, lambda: list((run / FOLDER).glob(".step-*.partial")), log)
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, 0.3))
    processes = kill_all(process)
    left, steps = list((run / FOLDER).glob(".step-*")), saved_steps(run)
    found = re.search(r"going on from step (\d+):", log.read_text())
    aim = f"a save after {step}" if in_a_save else f"step {step}"
    newest = steps[-1] if steps else None
    return Kill(int(found[1]) if found else None, aim, reached(run), bool(left), newest, processes)


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def comparison(one: Path, other: Path) -> dict[str, bool]:
    """Of each part of two finished runs: is it the same to the bit?"""
    states = [state_folder(run, saved_steps(run)[-1]) for run in (one, other)]
    lines = [
        [{name: value for name, value in line.items() if name not in CLOCKED} for line in read_metrics(run)]
        for run in (one, other)
    ]
    names = [json.loads((state / "state.json").read_text())["step"] for state in states]
    return {
        "step": names[0] == names[1],
        "averaged weights": tensors(one / "model.safetensors") == tensors(other / "model.safetensors"),
        "raw weights and moments": tensors(states[0] / TENSORS) == tensors(states[1] / TENSORS),
        "metrics.jsonl": lines[0] == lines[1],
    }


def in_words(value: str | int | bool | None) -> str:
    words = {None: "-", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed (default: 20)")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of the run (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    chance, kills = random.Random(options.seed), []
    with TemporaryDirectory() as place:
        shards, unbroken, run = Path(place) / "shards", Path(place) / "unbroken", Path(place) / "broken"
        simulate_shards(Truth.of(SimulationConfig(num_cells=2000, num_genes=256)), shards)
        log = Path(place) / "log"
        if started(command(shards, unbroken, options.steps), log).wait():
            raise SystemExit(log.read_text())
        line = command(shards, run, options.steps)
        aims = sorted(chance.randrange(options.steps - 2 * SAVE_EVERY) for _ in range(options.kills))
        print("| kill | went on from | aimed at | reached | half-written state | newest state | processes killed |")
        print("| ---: | ---: | --- | ---: | --- | ---: | ---: |", flush=True)
        for number, step in enumerate(aims, start=1):
            # A third of the kills is aimed at a save.
            kill = kill_at(line, run, step, number % 3 == 0, chance, log)
            kills.append(kill)
            told = [str(number), *map(in_words, asdict(kill).values())]
            print(f"| {' | '.join(told)} |", flush=True)
        if started(line, log).wait():
            raise SystemExit(log.read_text())
        same = comparison(unbroken, run)
    print()
    for part, is_same in same.items():
        print(f"{part}: {'the same to the bit' if is_same else 'DIFFERENT'}")
    if options.json:
        options.json.write_text(json.dumps({"kills": [asdict(kill) for kill in kills], "same": same}, indent=1) + "\n")
    sys.exit(not all(same.values()))


if __name__ == "__main__":
    main()
