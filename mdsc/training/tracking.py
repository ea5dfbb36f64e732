"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when asked."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from mdsc.atomic import replacing
from mdsc.config.schema import TrainConfig
from mdsc.errors import UserError
from mdsc.training.background_writer import cannot_write
from mdsc.training.resume import SavedState

FILE_NAME = "metrics.jsonl"


class Tracker:
    """Writes one JSON object a line into the run's folder. For the main process.

    Without `state` an earlier run's file is replaced. Else the run goes on from this training state: what its file says
    of later steps is cut off, so that in the end it is the file of a run that nobody stopped.
    """

    def __init__(self, config: TrainConfig, state: SavedState | None = None):
        wandb = _import_wandb() if config.tracking.wandb else None
        folder = Path(config.output_dir)
        path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as beside:
                beside.write_text("" if state is None else _lines_until(state.run / FILE_NAME, state.step), "utf-8")
            # Line by line, so that a killed run leaves whole lines.
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._wandb = _start(wandb, config, state and state.facts["wandb_run"]) if wandb else None

    @property
    def wandb_run(self) -> str | None:
        """Id of the run at Weights & Biases, by which it is gone on with."""
        return None if self._wandb is None else self._wandb.id

    def to_disk(self) -> None:
        """Bring the lines to the disk: a state must not outlive the lines before it."""
        os.fsync(self._file.fileno())

    def log(self, step: int, values: dict[str, float | int]) -> None:
        """Add a line: `step` is the number of optimiser steps done. A number that is not finite is written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._write({"step": step, **finite})
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def event(self, step: int, what: str, facts: Mapping[str, Any]) -> None:
        """Add a line of something that happened, with `what` as its "event"."""
        self._write({"step": step, "event": what, **facts})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise cannot_write(Path(self._file.name).parent, error) from error

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A line that the disk has not taken is told already; closing would tell it again.
        with nullcontext() if kind is None else suppress(OSError):
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def read_metrics(folder: str | Path) -> list[dict[str, float | int | str | None]]:
    """The lines of a run's metrics.jsonl, in order; those of events have an "event"."""
    lines = (Path(folder) / FILE_NAME).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _lines_until(path: Path, step: int) -> str:
    """The lines of the first `step` steps. What a crash of the machine has left half-written is no line."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            is_kept = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            continue
        if is_kept:
            kept.append(line + "\n")
    return "".join(kept)


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError:
        raise UserError(
            "--tracking.wandb needs the package wandb: pip install 'mdsc[wandb]', or leave it out."
        ) from None
    return wandb


def _start(wandb: ModuleType, config: TrainConfig, run_id: str | None):
    options = {"name": Path(config.output_dir).name, "dir": config.output_dir, "config": asdict(config)}
    known = {"id": run_id, "resume": "allow"} if run_id else {}
    return wandb.init(project=config.tracking.project, **options, **known)
