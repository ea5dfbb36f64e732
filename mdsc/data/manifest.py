"""`manifest.json`: what a folder of shards holds, so that nothing of it is missing or changed unnoticed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mdsc.errors import UserError

FILE_NAME = "manifest.json"
FORMAT = "mdsc-shards"
VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One parquet file."""

    file: str
    """Name below the root. A cell's address begins with it."""
    split: str
    bytes: int
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    hashes: tuple[str, ...] = ()
    """Of each row group and of the footer (`mdsc.data.shard_file`); empty where the file was not hashed, and each one
    where its part was not (row groups of a file that is read from far away)."""
    heldout: tuple[str, ...] = ()
    """Rows of each row group that are of split "heldout" and not of `split`, as the hex digits of a bit mask (numpy's
    packbits); empty where no row is."""
    unused: tuple[str, ...] = ()
    """Rows of each row group that are of no split, likewise."""

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """A condition that the files do not have, but that follows from a column of theirs (Tahoe's dose from `sample`)."""

    column: str
    values: Mapping[str, str]
    """Condition of each value; what is not here is unknown."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    conditions: Mapping[str, tuple[str, ...]]
    """Condition columns, each with the sorted levels of its cells of split "train"; unknown ("") is no level."""
    shards: tuple[Shard, ...]
    sources: tuple[Mapping[str, Any], ...] = ()
    """Where the cells came from: {"file": ..., "cells": ...}, names without folders."""
    genes: str = "genes.parquet"
    cell_id_column: str = "cell_id"
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    """How conditions that are no columns of the files are found."""
    root: str = ""
    """Where the files are: "" for the folder of the manifest, else an absolute path, or a URL that ends with "/". Not
    part of the digest, so that data may move."""

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION} | asdict(self)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex. A run is resumed only on the manifest that it was started on."""
        content = {name: value for name, value in self.to_dict().items() if name != "root"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

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
        shards = tuple(Shard(**{name: _frozen(value) for name, value in shard.items()}) for shard in stored["shards"])
        conditions = {name: tuple(levels) for name, levels in stored["conditions"].items()}
        lookups = {name: Lookup(**lookup) for name, lookup in stored["lookups"].items()}
        sources = tuple(stored["sources"])
        return Manifest(**stored | {"shards": shards, "conditions": conditions, "lookups": lookups, "sources": sources})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged ({error}): copy the folder again, or prepare the data again") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
