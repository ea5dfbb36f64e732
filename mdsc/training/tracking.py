"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when asked."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, TracebackType

from mdsc.config.schema import TrainConfig
from mdsc.errors import UserError

FILE_NAME = "metrics.jsonl"


class Tracker:
    """Writes one JSON object a line into the run's folder, replacing an earlier run's file. For the main process."""

    def __init__(self, config: TrainConfig):
        wandb = _import_wandb() if config.tracking.wandb else None
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = _start(wandb, config) if wandb else None
        # Line by line, so that a killed run leaves whole lines.
        self._file = (folder / FILE_NAME).open("w", encoding="utf-8", buffering=1)

    def log(self, step: int, values: dict[str, float | int]) -> None:
        """Add a line: `step` is the number of optimiser steps done. A number that is not finite is written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def event(self, step: int, what: str, facts: Mapping[str, str | int]) -> None:
        """Add a line of something that happened, with `what` as its "event"."""
        self._file.write(json.dumps({"step": step, "event": what, **facts}) + "\n")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def read_metrics(folder: str | Path) -> list[dict[str, float | int | str | None]]:
    """The lines of a run's metrics.jsonl, in order; those of events have an "event"."""
    lines = (Path(folder) / FILE_NAME).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError:
        raise UserError(
            "--tracking.wandb needs the package wandb: pip install 'mdsc[wandb]', or leave it out."
        ) from None
    return wandb


def _start(wandb: ModuleType, config: TrainConfig):
    name = Path(config.output_dir).name
    return wandb.init(project=config.tracking.project, name=name, dir=config.output_dir, config=asdict(config))
