"""`manifest.json`: what a folder of shards holds, so that nothing of it is missing or changed unnoticed."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from mdsc.errors import UserError

FILE_NAME = "manifest.json"
FORMAT = "mdsc-shards"
VERSION = 3
HASH = re.compile("[0-9a-f]{32}")
MASK = re.compile("(?:[0-9a-f]{2})*")
MOST_BYTES = 2**62
MOST_ROWS = 2**26
"""Of a row group: as many as pyarrow writes. An order of more would fill the memory before the file is read."""


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
        content = self.to_dict() | {"digest": self.digest}
        (folder / FILE_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_shard_folder(folder: Path) -> bool:
    try:
        return json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder; `UserError` where the folder or the manifest is missing, not ours or damaged."""
    path = folder / FILE_NAME
    if not os.path.isdir(folder):  # false for names that cannot be, where Path raises
        if os.path.isfile(folder):
            raise UserError(f"{folder} is a file: give a folder of shards")
        raise UserError(f"there is no folder {folder}: make shards with data_prep/h5ad.py (or data_prep/demo.py)")
    if not path.is_file():
        raise UserError(f"{folder} is no folder of shards (it has no {FILE_NAME}): make one with data_prep/h5ad.py")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        _require(isinstance(stored, dict), "content", stored)
        if (stored.pop("format"), stored.pop("version")) != (FORMAT, VERSION):
            raise UserError(f"{path} is of another format or version than {FORMAT} {VERSION}: prepare the data again")
        digest = stored.pop("digest", None)  # of none that was written by hand
        _check(stored)
        manifest = _manifest_of(stored)
        # One bit of a mask would else make a training cell of one that is held out.
        if digest is not None and digest != manifest.digest:
            raise ValueError("its digest is not that of what it says")
        return manifest
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({what}): copy the folder again, or prepare the data again") from error


def _manifest_of(stored: dict[str, Any]) -> Manifest:
    shards = tuple(
        Shard(**_known({name: _frozen(value) for name, value in shard.items()}, Shard)) for shard in stored["shards"]
    )
    conditions = {name: _frozen(levels) for name, levels in stored["conditions"].items()}
    lookups = {name: Lookup(**_known(lookup, Lookup)) for name, lookup in stored["lookups"].items()}
    sources = _frozen(stored["sources"])
    return Manifest(
        **_known(stored, Manifest)
        | {"shards": shards, "conditions": conditions, "lookups": lookups, "sources": sources}
    )


def _known(stored: dict[str, Any], kind: type) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    _require(stored.keys() <= names, "entry", ", ".join(stored.keys() - names))
    return stored


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(stored: dict[str, Any]) -> None:
    """`ValueError` for an entry of a wrong type, or one that cannot be; what lacks is for the constructors to say."""
    for name in ("genes", "cell_id_column"):
        _require(is_text(stored.get(name, "x")), name, stored.get(name))
    root = stored.get("root", "")
    _require(root == "" or (is_text(root) and (PurePath(root).is_absolute() or "://" in root)), "root", root)
    _require(all(isinstance(source, dict) for source in _as_list(stored["sources"], "sources")), "sources")
    for name, levels in stored["conditions"].items():
        levels = _as_list(levels, f"conditions of {name!r}")
        _require(is_text(name) and all(map(is_text, levels)), "conditions", name)
    for name, lookup in stored["lookups"].items():
        _require(is_text(lookup["column"]) and isinstance(lookup["values"], dict), "lookups", name)
        _require(all(isinstance(value, str) for value in lookup["values"].values()), "lookups", name)
    for shard in _as_list(stored["shards"], "shards"):
        _check_shard(shard)
    twice = [file for file, number in Counter(shard["file"] for shard in stored["shards"]).items() if number > 1]
    _require(not twice, "file that is listed twice", twice)


def _check_shard(shard: dict[str, Any]) -> None:
    file = shard["file"]
    # A manifest may come from elsewhere: what it names lies below its root.
    place = PurePath(file) if is_text(file) else PurePath()
    _require(not place.is_absolute() and ".." not in place.parts and place.name != "", "file", file)
    _require(is_text(shard["split"]), f"split of {file}", shard["split"])
    _require(_is_number(shard["bytes"], MOST_BYTES), f"bytes of {file}", shard["bytes"])
    groups = _as_list(shard["row_groups"], f"row_groups of {file}")
    _require(all(_is_number(rows, MOST_ROWS) for rows in groups), f"row_groups of {file}")
    hashes = _as_list(shard.get("hashes", []), f"hashes of {file}")
    # A part of a file that is far away may have no hash.
    are_hashes = all(isinstance(digits, str) and (digits == "" or HASH.fullmatch(digits)) for digits in hashes)
    _require(are_hashes and len(hashes) in (0, len(groups) + 1), f"hashes of {file}")
    for name in ("heldout", "unused"):
        masks = _as_list(shard.get(name, []), f"{name} of {file}")
        _require(len(masks) in (0, len(groups)), f"{name} of {file}")
        for mask, rows in zip(masks, groups, strict=False):
            is_mask = isinstance(mask, str) and MASK.fullmatch(mask) is not None
            _require(is_mask and len(mask) in (0, 2 * -(-rows // 8)), f"{name} of {file}", mask)


def _require(is_right: bool, what: str, value: Any = None) -> None:
    if not is_right:
        raise ValueError(f"wrong {what}" + ("" if value is None else f": {str(value)[:80]!r}"))


def _as_list(value: Any, what: str) -> list:
    _require(isinstance(value, list), what)
    return value


def is_text(value: Any) -> bool:
    """Text that can be a name of a file: not empty, without zeros and lone surrogates."""
    return isinstance(value, str) and value != "" and "\0" not in value and _encodes(value)


def _encodes(value: str) -> bool:
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def _is_number(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
