"""What benchmarks/gpu.py measures without training: peak, attention, whole steps by size, backend and batch, tests.

A stage takes a `Plan` and a function that keeps what is known so far, and gives its result. On a CPU (--dry-run) it
does the same with shapes that take seconds.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[1]
Keep = Callable[[dict], None]
BIG_FIRST = ("base", "large", "xl", "small")
"""The sizes in the order of what is to be known: the goals are of the first three."""
GPU_SHAPE = {"cells": 8, "genes": 1023, "width": 768}  # an odd number of genes: not every kernel takes one
CPU_SHAPE = {"cells": 2, "genes": 31, "width": 64}
SWEEP = {"base": (8, 16, 32, 64, 128)}


@dataclass(frozen=True)
class Plan:
    device: str
    dry_run: bool
    work_dir: str
    """For shards and runs; what is there is used again."""
    deadline: float
    """On `time.monotonic`: then the stage is cut off, and what it has kept counts."""


def peak(plan: Plan, keep: Keep) -> dict:
    """Floating-point operations a second of a matrix product, and what they were measured on."""
    from mdsc.training.peak_flops import peak_flops

    device = torch.device(plan.device)
    result = {"torch": torch.__version__, "python": platform.python_version(), "device": device_name(device)}
    result["git"] = os.environ.get("MDSC_COMMIT")
    keep(result)
    for name in ("bf16", "fp32"):
        result[name] = peak_flops(device, bf16=name == "bf16", repeats=2 if plan.dry_run else 7)
        keep(result)
    return result


def attention(plan: Plan, keep: Keep) -> dict:
    """Each attention forward, backward and with pads, against eager attention in float32; speed against sdpa."""
    from mdsc.model.attention import BACKENDS
    from mdsc.model.attention_trial import TOLERANCE, AttentionTrial

    device = torch.device(plan.device)
    trials: dict[str, dict] = {}
    result = {"tolerance": TOLERANCE[torch.bfloat16], "shape": CPU_SHAPE if plan.dry_run else GPU_SHAPE}
    result["trials"] = trials
    trial = AttentionTrial(device, torch.bfloat16, **result["shape"])
    for name in BACKENDS:
        if not (plan.dry_run and name == "flex_attention"):  # it would be compiled for what a CPU cannot train
            trials[name] = asdict(trial.run(name))
            keep(result)
    return result


def sizes(plan: Plan, keep: Keep) -> dict:
    """A whole step of each size and the reference DiT of equal width and depth, compiled and eager."""
    names = ("tiny",) if plan.dry_run else BIG_FIRST
    parts = [{"size": name, "mode": mode} for name in names for mode in ("compiled", "eager")]
    return _steps(plan, keep, parts, with_reference=True)


def sweep(plan: Plan, keep: Keep) -> dict:
    """Cells of a batch, compiled."""
    cells = {"tiny": (1, 2)} if plan.dry_run else SWEEP
    return _steps(plan, keep, [{"size": name, "cells": number} for name in cells for number in cells[name]])


def backends(plan: Plan, keep: Keep) -> dict:
    """A whole step of base with each attention that works here, compiled."""
    from mdsc.model.attention import BACKENDS, missing, unfit

    here = {"is_half": True, "has_pads": False, "needs_grad": True}
    fit = [name for name in BACKENDS if not (missing(name) or unfit(name, plan.device, **here))]
    size = "tiny" if plan.dry_run else "base"
    return _steps(plan, keep, [{"size": size, "attention": name} for name in fit if name != "eager"])


def _steps(plan: Plan, keep: Keep, parts: Sequence[dict], *, with_reference: bool = False) -> dict:
    """What benchmarks/train_step.py measures, part by part; a part that fails is told, and the others go on."""
    import train_step
    from train_step_measure import measure_in_turns, measure_one
    from train_step_variants import REFERENCE, STEP

    from mdsc.training.peak_flops import peak_flops

    device, genes = torch.device(plan.device), 16 if plan.dry_run else None
    result: dict = {"peak": peak_flops(device, bf16=True), "runs": [], "failures": []}
    default_cells = dict.fromkeys(train_step.CUDA_CELLS, 2) if plan.dry_run else train_step.CUDA_CELLS
    # Generating code for a CPU takes a minute and tells nothing of a GPU; the graphs are made all the same.
    quick = partial(torch.compile, backend="aot_eager") if plan.dry_run else torch.compile
    for part in parts:
        setting = {"mode": "compiled", "attention": "sdpa", "cells": default_cells[part["size"]]} | part
        options = {"bf16": True, "compiled": setting["mode"] == "compiled", "attention": setting["attention"]}
        shape = train_step._shape(setting["size"], device, setting.pop("cells"), genes)
        for name in (REFERENCE, STEP) if with_reference else (STEP,):
            print(f"{name}: {setting}, {shape.cells} cells", flush=True)
            run = setting | {"name": name, "precision": "bf16", "shape": asdict(shape)}
            try:
                with patch.object(torch, "compile", quick):
                    found = (
                        measure_one(name, shape, device, 7, **options)
                        if device.type == "cuda"
                        else measure_in_turns([name], shape, device, 2, **options)[name]
                    )
            except Exception as error:  # of a compiler or a kernel: the others are still to be measured
                found = {"failure": first_line(error)}
                result["failures"].append(f"{name}, {setting}: {found['failure']}")
            result["runs"].append(run | found)
            keep(result)
    return result


def tests(plan: Plan, keep: Keep) -> dict:
    """The tests that only a GPU can run; without one they must be skipped, and not fail."""
    marked = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "cuda.is_available()" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-k", "gpu or cuda", *map(str, marked)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    result = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (
        {"exit_code": done.returncode, "summary": last, "files": [path.name for path in marked]}
        | result
        | {"told": told[:20]}
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:300]}"
