"""`manifest.json`: what a folder of shards holds, so that a missing or cut-off file is found before training starts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mdsc.errors import UserError

FILE_NAME = "manifest.json"
FORMAT = "mdsc-shards"
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One parquet file."""

    file: str
    split: str
    rows: int
    bytes: int
    row_groups: tuple[int, ...]
    """Rows of each row group."""


@dataclass(frozen=True)
class Manifest:
    condition_columns: tuple[str, ...]
    shards: tuple[Shard, ...]
    sources: tuple[Mapping[str, Any], ...]
    """Where the cells came from: {"file": ..., "cells": ...}, names without folders."""
    genes: str = "genes.parquet"

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION} | asdict(self)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex. A run is resumed only on the manifest that it was started on."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def is_shard_folder(folder: Path) -> bool:
    try:
        return json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder; `UserError` where the folder or the manifest is missing or not ours."""
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: make shards with data_prep/h5ad.py (or data_prep/demo.py)")
    if not path.is_file():
        raise UserError(f"{folder} is no folder of shards (it has no {FILE_NAME}): make one with data_prep/h5ad.py")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored.pop("format"), stored.pop("version")) != (FORMAT, VERSION):
            raise UserError(f"{path} is of another format or version than {FORMAT} {VERSION}: prepare the data again")
        shards = tuple(_shard(**shard) for shard in stored.pop("shards"))
        conditions, sources = stored.pop("condition_columns"), tuple(stored.pop("sources"))
        if not (isinstance(conditions, list) and all(isinstance(name, str) for name in conditions)):
            raise ValueError("condition_columns is no list of names")
        return Manifest(condition_columns=tuple(conditions), shards=shards, sources=sources, **stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged ({error}): copy the folder again, or prepare the data again") from error


def _shard(*, file: Any, split: Any, rows: Any, bytes: Any, row_groups: Any) -> Shard:
    """ValueError where a value is of another kind, or where the row groups do not add up."""
    if not (isinstance(file, str) and isinstance(split, str)):
        raise ValueError("file and split of a shard are no names")
    numbers = (rows, bytes, *row_groups)
    if not all(type(number) is int and number >= 0 for number in numbers) or sum(row_groups) != rows:
        raise ValueError(f"rows, bytes and row_groups of {file} do not fit together")
    return Shard(file, split, rows, bytes, tuple(row_groups))
