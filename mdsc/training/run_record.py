"""run.json: of each start of a run, how it was called, by which code and versions, on which devices, and from where.

    {"starts": [{"time": ..., "command": [...], "git": {"commit": ..., "is_dirty": ...}, "versions": {...}, ...}, ...]}

A run that goes on adds a start. No token is ever in it.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import mdsc
from mdsc.atomic import replacing
from mdsc.config.schema import TrainConfig
from mdsc.hub.failures import without_secrets
from mdsc.training.resume import SavedState

FILE_NAME = "run.json"
PACKAGES = (
    *("torch", "transformers", "accelerate", "safetensors", "numpy", "scipy", "pyarrow", "numba", "huggingface_hub"),
    *("flash-attn", "wandb", "tensorboard"),
)
SECRET = "token|secret|password|passwd|api[-_]?key|credentials?"
SECRET_FLAG = re.compile(rf"(?i)--?([\w.-]*[-._])?({SECRET})([-._][\w.-]*)?")
PATIENCE = 5
"""Seconds that git may take."""


def start_of(config: TrainConfig, accelerator: Accelerator, data: str, state: SavedState | None) -> dict[str, Any]:
    """What is to be known of this start. `data` is the digest of the shards' manifest. For the main process."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if on_gpu else []
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_tokens(sys.argv),
        "from_step": 0 if state is None else state.step,
        "git": code_commit(Path(mdsc.__file__).parent),
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": names or [device.type],
        "cuda": torch.version.cuda if on_gpu else None,
        "processes": accelerator.num_processes,
        "data": data,
        "options": json.loads(without_secrets(json.dumps(asdict(config)))),
    }


def write_start(folder: Path, start: dict[str, Any], state: SavedState | None) -> None:
    """Add it to those of the run that is gone on with, or begin anew. A file that cannot be read is kept beside, as
    run.json.damaged. Raises OSError."""
    earlier = [] if state is None else starts_of(state.run)
    if state is not None and not earlier and (folder / FILE_NAME).is_file():
        os.replace(folder / FILE_NAME, folder / f"{FILE_NAME}.damaged")
    with replacing(folder / FILE_NAME) as beside:
        beside.write_text(json.dumps({"starts": [*earlier, start]}, indent=1) + "\n", encoding="utf-8")


def starts_of(run: Path) -> list[dict[str, Any]]:
    """Of a run's run.json, the newest last; none where it is not there or not whole."""
    try:
        starts = json.loads((run / FILE_NAME).read_text(encoding="utf-8"))["starts"]
        return starts if isinstance(starts, list) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def without_tokens(command: Sequence[str]) -> list[str]:
    """The command, with *** for what follows a flag of a secret, looks like a token, or is this machine's token."""
    told, is_secret = [], False
    for argument in command:
        flag, equals, _ = argument.partition("=")
        if is_secret and not argument.startswith("--"):
            told.append("***")
        elif SECRET_FLAG.fullmatch(flag) and equals:
            told.append(f"{flag}=***")
        else:
            told.append(without_secrets(argument))
        is_secret = bool(SECRET_FLAG.fullmatch(argument))
    return told


def code_commit(package: Path) -> dict[str, str | bool] | None:
    """Commit of the checkout that the package is run from, and whether its files differ from it; None where the package
    is installed, or is no part of the checkout that it lies in."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", ".")
    return commit and {"commit": commit, "is_dirty": changes != ""}


def versions() -> dict[str, str]:
    """Of Python, mdsc and the packages that numbers may depend on, those that are there."""
    found = {"python": platform.python_version(), "mdsc": mdsc.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"torch": str(torch.__version__)}  # with its build, +cpu or +cu130


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
