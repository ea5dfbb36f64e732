"""All that is to be known of a GPU, in one command that may be cut off: the most important first, kept as it comes.

    python benchmarks/gpu.py --minutes 9 --out runs/gpu                          one call; a second one goes on
    python benchmarks/gpu.py --minutes 9 --out runs/gpu --stages stability       20 minutes in calls of 9
    python benchmarks/gpu.py --out runs/gpu --markdown docs/results/gpu.md       tables of all calls
    python benchmarks/gpu.py --dry-run --out /tmp/gpu                            every stage on a CPU, tiny

Each stage is a process with a share of the time; a failure, a hang or a lack of memory ends that stage alone. Each
call writes a JSON file of its own into --out after each stage, and in tables the newest result of a stage counts. Needs
torch and transformers; what else a stage lacks is told, with the command that brings it (benchmarks/gpu_wheels.sh).
"""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("torch", "numpy", "jaxtyping", "transformers", "safetensors", "huggingface_hub", "einops", "yaml")
DATA = ("pyarrow", "scipy", "xxhash", "psutil", "fsspec")
TRAINING = (*CODE, *DATA, "accelerate", "tyro", "rich", "matplotlib")
TESTS = (*TRAINING, "pytest", "beartype", "pandas")
DISTRIBUTIONS = {"yaml": "pyyaml", "tyro": "tyro docstring-parser typeguard", "jaxtyping": "jaxtyping wadler-lindig"}
"""Where they are called otherwise, or need what is seldom there."""
DRY_SECONDS = 120.0
"""Of stability, at most: it ends when it has trained some steps."""


@dataclass(frozen=True)
class Stage:
    module: str
    needs: tuple[str, ...]
    minutes: float
    """At most; stability takes all that is left."""


STAGES = {
    "peak": Stage("gpu_stages", ("torch",), 0.7),
    "attention": Stage("gpu_stages", CODE, 1.5),
    "sizes": Stage("gpu_stages", (*CODE, *DATA, "tyro"), 6.0),
    "loader": Stage("gpu_training", TRAINING, 4.0),
    "resume": Stage("gpu_training", TRAINING, 2.0),
    "sweep": Stage("gpu_stages", (*CODE, *DATA, "tyro"), 3.0),
    "tests": Stage("gpu_stages", TESTS, 2.0),
    "backends": Stage("gpu_stages", (*CODE, *DATA, "tyro"), 3.0),
    "stability": Stage("gpu_training", TRAINING, 60.0),
}
"""In the order of their importance."""


def main(argv: Sequence[str]) -> int:
    options = parsed(argv)
    out = Path(options.out)
    if options.markdown:
        from gpu_tables import write_tables

        write_tables(Path(options.markdown), merged(out))
        return 0
    if options.dry_run and not options.device:
        options.device = "cpu"
    device = options.device or "cuda"
    if lacking := say_what_is_missing(options.stages):
        print("these stages are left out:", ", ".join(lacking), flush=True)
    if device == "cuda" and not has_gpu():
        print("error: there is no CUDA GPU here; --dry-run does every stage on the CPU", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    end = time.monotonic() + 60 * options.minutes
    result = {"dry_run": options.dry_run, "minutes": options.minutes, "stages": {}}
    for name in options.stages:
        left = end - time.monotonic()
        if name in lacking:
            told = {"failure": f"lacks {', '.join(lacking[name])}"}
        elif left < (5 if options.dry_run else 30):
            told = {"failure": "no time was left"}
        else:
            most = DRY_SECONDS if options.dry_run and name == "stability" else 60 * STAGES[name].minutes
            told = run_stage(name, device, options, min(left, most))
        told["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        result["stages"][name] = told
        written = path.with_suffix(".partial")
        written.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(written, path)
        print(f"== {name}: {told.get('failure', 'done')}, {told.get('seconds', 0):.0f} s", flush=True)
    print(f"wrote {path}")
    return 0 if all("failure" not in told for told in result["stages"].values()) else 1


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """By argparse: the parser of the other benchmarks may be what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gpu", help="folder for the JSON files (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all, in this order")
    parser.add_argument(
        "--work-dir", help="folder for shards and runs, which later calls go on with (default: OUT/work)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, and cpu for --dry-run")
    parser.add_argument("--dry-run", action="store_true", help="every stage with tiny shapes, on a CPU in two minutes")
    parser.add_argument("--markdown", help="write tables of what --out holds into this file, and measure nothing")
    return parser.parse_args(argv)


def run_stage(name: str, device: str, options: argparse.Namespace, seconds: float) -> dict:
    """In a process of its own, which is ended when its time is over; what it has kept until then counts."""
    work = Path(options.work_dir or Path(options.out) / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    kept, log = work / f"{name}.json", work / f"{name}.log"
    kept.unlink(missing_ok=True)
    plan = {"device": device, "dry_run": options.dry_run, "work_dir": str(work), "deadline": time.monotonic() + seconds}
    command = [sys.executable, __file__, "--one-stage", name, json.dumps(plan), str(kept)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    print(f"== {name}: {seconds:.0f} s at most", flush=True)
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=file, stderr=file, start_new_session=True
        )
        was_cut = _wait(process, seconds)
    told = json.loads(kept.read_text()) if kept.is_file() else {}
    told["seconds"] = time.monotonic() - start
    if was_cut:
        told["failure"] = f"cut off after {seconds:.0f} s; what is here was measured before"
    elif process.returncode:
        told["failure"] = f"exit code {process.returncode}: {_last_lines(log, 1)}"
        print(_last_lines(log, 15), flush=True)
    return told


def _wait(process: subprocess.Popen, seconds: float) -> bool:
    """Whether it had to be ended."""
    try:
        process.wait(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)  # its own group, with the processes that it has started
            try:
                process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                continue
        return True


def one_stage(name: str, plan: str, kept: str) -> None:
    """What the process of a stage does."""
    from gpu_stages import Plan

    def keep(result: dict) -> None:
        written = Path(kept).with_suffix(".partial")
        written.write_text(json.dumps(result), encoding="utf-8")
        os.replace(written, kept)

    stage = getattr(importlib.import_module(STAGES[name].module), name)
    keep(stage(Plan(**json.loads(plan)), keep))


def say_what_is_missing(stages: Sequence[str]) -> dict[str, list[str]]:
    """Modules that each of these stages lacks, for those that lack any; told with a way to bring them."""
    lacking = {name: missing for name in stages if (missing := [m for m in STAGES[name].needs if not _is_there(m)])}
    modules = sorted({module for missing in lacking.values() for module in missing})
    if modules:
        names = " ".join(DISTRIBUTIONS.get(module, module) for module in modules)
        print(f"missing here: {', '.join(modules)}. Where the network is, a machine of the same Python in mind:")
        print(f"    sh benchmarks/gpu_wheels.sh wheels {names}")
        print("and here: python -m pip install --no-index --no-deps --target site wheels/*.whl")
        print("          export PYTHONPATH=$PWD/site")
    return lacking


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def merged(out: Path) -> dict:
    """The newest result of each stage in the files of a folder; one that was measured goes before one that failed."""
    stages: dict[str, dict] = {}
    is_dry = []
    for path in sorted(out.glob("gpu-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        is_dry.append(result["dry_run"])
        for name, told in result["stages"].items():
            measured = set(told) - {"failure", "time", "seconds"}
            if measured or name not in stages:
                stages[name] = told
    if len(set(is_dry)) > 1:
        raise SystemExit(f"error: {out} holds dry runs and others; give each a folder of its own")
    return {"dry_run": any(is_dry), "stages": stages}


def _last_lines(path: Path, number: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-number:])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-stage"]:
        one_stage(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
