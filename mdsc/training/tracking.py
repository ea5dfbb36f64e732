"""Where a run's numbers go: metrics.jsonl always, Weights & Biases and TensorBoard when asked."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from mdsc.atomic import replacing
from mdsc.config.schema import TrainConfig
from mdsc.errors import UserError
from mdsc.hub.failures import without_secrets
from mdsc.training.background_writer import cannot_write
from mdsc.training.resume import SavedState
from mdsc.training.run_record import write_start

FILE_NAME = "metrics.jsonl"
BOARD = "tensorboard"
SECONDS_TO_DISK = 10


class Tracker:
    """Writes one JSON object a line into the run's folder. For the main process.

    Without `state` an earlier run's file is replaced. Else the run goes on from this training state: what its file says
    of later steps is cut off, so that in the end it is the file of a run that nobody stopped.
    """

    def __init__(self, config: TrainConfig, state: SavedState | None = None, start: Mapping[str, Any] | None = None):
        """`start` is what `run_record.start_of` tells of this start; it goes into run.json."""
        wandb = _import_wandb() if config.tracking.wandb else None
        board = _import_tensorboard() if config.tracking.tensorboard else None
        folder = Path(config.output_dir)
        path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as beside:
                beside.write_text("" if state is None else _lines_until(state.run / FILE_NAME, state.step), "utf-8")
            # Line by line, so that a killed run leaves whole lines.
            self._file = path.open("a", encoding="utf-8", buffering=1)
            if start is not None:
                write_start(folder, start, state)
            self._board = _start_tensorboard(board, folder, state) if board else None
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            self._wandb = (
                _start_wandb(wandb, config, start or {}, state and state.facts["wandb_run"]) if wandb else None
            )
        except UserError:
            self._file.close()
            raise

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
        if self._board is not None:
            with self._told_of_the_disk():
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def event(self, step: int, what: str, facts: Mapping[str, Any]) -> None:
        """Add a line of something that happened, with `what` as its "event"."""
        self._write({"step": step, "event": what, **facts})
        if self._wandb is not None:
            self._wandb.log({f"events/{what}": 1}, step=step)
        if self._board is not None:
            with self._told_of_the_disk():
                self._board.add_text(f"events/{what}", json.dumps(facts), step)

    def _write(self, line: dict[str, Any]) -> None:
        with self._told_of_the_disk():
            self._file.write(json.dumps(line, allow_nan=False) + "\n")

    @contextmanager
    def _told_of_the_disk(self) -> Iterator[None]:
        try:
            yield
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
            if self._board is not None:
                self._board.close()
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


def _start_wandb(wandb: ModuleType, config: TrainConfig, start: Mapping[str, Any], run_id: str | None):
    facts = {name: value for name, value in start.items() if name != "options"}
    options = {
        "name": Path(config.output_dir).name,
        "dir": config.output_dir,
        "config": asdict(config) | {"run": facts},
    }
    known = {"id": run_id, "resume": "allow"} if run_id else {}
    try:
        return wandb.init(project=config.tracking.project, **options, **known)
    except wandb.Error as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--tracking.wandb: {without_secrets(why)}\n"
            "Log in (wandb login, or WANDB_API_KEY), set WANDB_MODE=offline, or leave it out."
        ) from error


def _import_tensorboard() -> ModuleType:
    try:
        import torch.utils.tensorboard
    except ImportError:
        raise UserError(
            "--tracking.tensorboard needs the package tensorboard: pip install 'mdsc[tensorboard]', or leave it out."
        ) from None
    return torch.utils.tensorboard


def _start_tensorboard(board: ModuleType, folder: Path, state: SavedState | None):
    """Where the run goes on in its folder, what was written of later steps is no longer shown; else all is new."""
    purge_step = None
    if state is not None and state.run == folder.resolve():
        purge_step = state.step + 1
    else:
        shutil.rmtree(folder / BOARD, ignore_errors=True)
    return board.SummaryWriter(str(folder / BOARD), purge_step=purge_step, flush_secs=SECONDS_TO_DISK)
