"""A training state on disk: RUN/state/step-00001234/, whole or not there, every byte of it under a hash.

    model.safetensors, config.json, ...   a checkpoint folder (`mdsc.checkpoint`): the averaged weights, ready for use
    training.safetensors                  raw weights, AdamW's moments: what only training needs
    state.json                            all else, and size and XXH3 of every file, itself included

A state is written beside, brought to the disk (fsync of files and folder) and renamed. A kill at any moment leaves the
states that were there before.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from mdsc.errors import UserError

FOLDER = "state"
REPLACED = "state.replaced"
FACTS = "state.json"
TENSORS = "training.safetensors"
FORMAT, VERSION = "mdsc-training-state", 1
NAME = re.compile(r"step-(\d{8,})")
CHUNK = 1 << 24


class DamagedState(UserError):
    """A state that is not what was written; the one before may be."""


def state_folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def saved_steps(run: Path) -> list[int]:
    """Steps of the states of a run, the newest last; read from names alone."""
    folder = run / FOLDER
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := NAME.fullmatch(name)))


def write_state(run: Path, step: int, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Write the state of `step`: `fill(folder)` writes the files, `facts` go into state.json.

    Raises OSError where the disk is full or read-only; then nothing is left of it.
    """
    target = state_folder(run, step)
    beside = target.with_name(f".{target.name}.partial")
    _remove_rests(target.parent)
    try:
        beside.mkdir(parents=True)
        fill(beside)
        files = {path.name: _size_and_hash(path) for path in sorted(beside.iterdir())}
        content = {"format": FORMAT, "version": VERSION, "step": step, **facts, "files": files}
        text = json.dumps(content | {"hash": _hash_of(content)}, indent=1)
        (beside / FACTS).write_text(text + "\n", encoding="utf-8")
        for path in (*beside.iterdir(), beside):
            _to_disk(path)
        if target.exists():  # of a run that has come by here before: damaged, or of other numbers of processes
            _out_of_the_way(target)
        os.replace(beside, target)
        _to_disk(target.parent)
    finally:
        _remove_rests(target.parent)


def read_state(folder: Path) -> dict[str, Any]:
    """The facts of a state, after a look at every byte of it. DamagedState says what is wrong."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if (facts["format"], facts["version"]) != (FORMAT, VERSION):
            raise UserError(f"{folder} is of another format or version than {FORMAT} {VERSION}: start the run anew.")
        if facts.pop("hash") != _hash_of(facts):
            raise DamagedState(f"{FACTS} is not as it was written")
        for name, expected in facts["files"].items():
            if _size_and_hash(folder / name) != expected:
                raise DamagedState(f"{name} is not as it was written")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedState(f"{FACTS} or a file that it names cannot be read: {error}") from error
    return facts


def best_step(run: Path) -> int | None:
    """Step of the state with the lowest validation score among those of a run; None where none has one."""
    scores = {step: score for step in saved_steps(run) if (score := _score(state_folder(run, step))) is not None}
    return min(scores, key=scores.get, default=None)


def set_aside(run: Path) -> None:
    """Put the states of an earlier run out of the way of a new one. They are kept until that one has saved."""
    if (run / FOLDER).exists():
        shutil.rmtree(run / REPLACED, ignore_errors=True)
        os.replace(run / FOLDER, run / REPLACED)


def remove_old_states(run: Path, step: int, keep_last: int) -> None:
    """Keep the state of `step`, the `keep_last` - 1 before it, and the best. Later ones are of a way not taken."""
    steps = saved_steps(run)
    for other in steps:
        if other > step:
            _out_of_the_way(state_folder(run, other))
    earlier = [other for other in steps if other <= step]
    kept = {*earlier[-keep_last:], best_step(run)}
    for other in earlier:
        if other not in kept:
            _out_of_the_way(state_folder(run, other))
    _remove_rests(run / FOLDER)
    shutil.rmtree(run / REPLACED, ignore_errors=True)


def _score(folder: Path) -> float | None:
    """Validation score at the state's own step, or the last one before it."""
    try:
        last = json.loads((folder / FACTS).read_text(encoding="utf-8"))["validation"]["last"]
        return None if last is None else score_of(last)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def score_of(validation: dict[str, float | int | None]) -> float | None:
    """The score of a validation; in states of older versions it has another name."""
    return validation["score"] if "score" in validation else validation["nll"]


def _out_of_the_way(folder: Path) -> None:
    """A state goes as it came, at once: none is ever half removed."""
    os.replace(folder, folder.with_name(f".{folder.name}.old"))


def _remove_rests(folder: Path) -> None:
    """What a killed run has left half-written or half-removed."""
    for pattern in (".step-*.partial", ".step-*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _size_and_hash(path: Path) -> dict[str, int | str]:
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return {"bytes": size, "xxh3": hasher.hexdigest()}


def _hash_of(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
