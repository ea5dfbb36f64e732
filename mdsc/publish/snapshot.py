"""The files of one checkpoint, held fast: a later save replaces names, and leaves what a snapshot holds as it was."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mdsc.errors import UserError
from mdsc.hub.download import CHECKPOINT_FILES, WEIGHTS

CARD = "README.md"
PICTURE = "loss.png"
NEEDED = ("config.json", "genes.parquet")


@dataclass(frozen=True)
class Snapshot:
    """A folder to push: the checkpoint's files, and later the card."""

    folder: Path
    step: int | None
    """Optimiser steps done; None where nothing tells."""

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    @property
    def label(self) -> str:
        return "the checkpoint" if self.step is None else f"step {self.step:,}"

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def take_snapshot(run: Path, folder: Path, step: int | None, *, with_picture: bool) -> Snapshot:
    """Link (where links cannot be made, copy) a run's checkpoint into `folder`, which is made anew.

    A run's own README.md comes along, and its picture where it is asked for. UserError where the run has no checkpoint,
    or replaces it just now.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Weights first: they are what changes, and are compared at the end.
    names = (WEIGHTS, *CHECKPOINT_FILES, CARD, *((PICTURE,) if with_picture else ()))
    for name in dict.fromkeys(names):
        if (run / name).is_file():
            _link(run / name, folder / name)
        elif name in (WEIGHTS, *NEEDED):
            shutil.rmtree(folder)
            raise UserError(f"{run} has no {name}: it is no checkpoint, or its training has not saved one yet.")
    if not _is_same(run / WEIGHTS, folder / WEIGHTS):
        shutil.rmtree(folder)
        raise UserError(f"{run} was saved anew while it was read: give the command again.")
    return Snapshot(folder, step)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _is_same(source: Path, target: Path) -> bool:
    try:
        one, other = source.stat(), target.stat()
    except FileNotFoundError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
