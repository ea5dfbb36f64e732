"""`mdsc verify shards/`: is every byte of a folder of shards what was prepared, and does each row group hold cells.
Of a mixture, all folders that it is made of are looked at.

Each file is read whole and its parts' hashes are compared with the manifest's; then each row group is decoded, and what
must hold of cells is checked (`mdsc.data.row_group_checks`). All faults are told, one a line. The exit code is 0 where
there is none, and 2 otherwise.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from mdsc.config.flags import parse_flags
from mdsc.data.genes import GeneVocabulary
from mdsc.data.manifest import Shard, load_manifest
from mdsc.data.row_group_checks import first_line
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.shard_file import DamagedFile, hash_parts
from mdsc.data.shard_mixture import FILE_NAME as MIXTURE
from mdsc.data.shard_mixture import ShardMixture, read_mixture
from mdsc.data.shards import REPAIR, CorruptRowGroup, ShardFolder
from mdsc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    folder: tyro.conf.Positional[Path]
    """Folder of shards."""
    fast: bool = False
    """Compare the hashes alone, and decode nothing."""
    num_workers: int = min(4, os.cpu_count() or 1)
    """Files that are checked at once, each in a thread."""


def faults(
    folder: ShardFolder, *, fast: bool = False, num_workers: int = 1, checked: Callable[[int], None] = lambda size: None
) -> Iterator[str]:
    """All faults, a line each, in the order of the manifest; `checked(bytes)` is called as the work goes on.

    folder: made without `ShardFolder.open`, which would refuse it at the first fault.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        for found in pool.map(lambda shard: list(_shard_faults(folder, shard, fast, checked)), folder.manifest.shards):
            yield from found


def _shard_faults(folder: ShardFolder, shard: Shard, fast: bool, checked: Callable[[int], None]) -> Iterator[str]:
    path = folder.location(shard.file)
    if (fault := folder.file_fault(shard)) is not None:
        checked(shard.bytes)
        yield fault
        return
    try:
        rows, hashes = hash_parts(path)
    except (DamagedFile, OSError) as error:
        checked(shard.bytes)
        yield f"{path}: {first_line(error)}"
        return
    if rows != shard.row_groups:
        yield f"{path}: its row groups have {_counts(rows)} rows, and should have {_counts(shard.row_groups)}"
    if shard.hashes and hashes[-1] != shard.hashes[-1]:
        yield f"{path}: its footer is not the one that was prepared (hash differs)"
    # A damaged footer may also lie about where row groups are, and so about their number.
    num_groups = min(len(rows), len(shard.row_groups))
    for group in range(num_groups):
        if shard.hashes and shard.hashes[group] not in ("", hashes[group]):
            yield f"{path}, row group {group}: its bytes are not those that were prepared (hash differs)"
        elif not fast and rows[group] == shard.row_groups[group]:
            yield from _decoding_faults(folder, RowGroupRef(shard.file, group, rows[group]))
        checked(shard.bytes // num_groups)
    checked(shard.bytes - num_groups * (shard.bytes // num_groups) if num_groups else shard.bytes)


def _decoding_faults(folder: ShardFolder, ref: RowGroupRef) -> Iterator[str]:
    """Whole row groups, all columns; hashed they are already, or have no hash."""
    try:
        folder.read(ref)
    except CorruptRowGroup as error:
        yield f"{folder.location(ref.file)}, row group {ref.group}: {error.why}"
    except UserError as error:
        yield str(error)


def _counts(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return (shown if len(rows) <= 5 else f"{shown}, ... ({len(rows)} row groups)") or "no"


def main(argv: Sequence[str] | None = None) -> None:
    """Print all faults; `UserError` (exit code 2) where there are any."""
    config = parse_flags(VerifyConfig, argv, __doc__)
    if config.num_workers < 1:
        raise UserError(f"--num-workers is {config.num_workers}; give 1 or more.")
    if not (config.folder / MIXTURE).is_file():
        _verify(config.folder, config)
        return
    faulty = []
    for member in read_mixture(config.folder / MIXTURE)["members"]:
        try:
            _verify(Path(os.path.normpath(config.folder / member["path"])), config)
        except UserError as error:
            faulty.append(str(error))
    if faulty:
        raise UserError("\n".join(faulty))
    ShardMixture.open(config.folder)
    print(f"{config.folder} fits the folders that it is made of")


def _verify(path: Path, config: VerifyConfig) -> None:
    """One folder of shards; a `UserError` says how many faults were printed."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    # Not `open`: what that refuses is told here with all the rest. Hashes are compared here, once.
    folder = ShardFolder(path, load_manifest(path), GeneVocabulary.load(path), verify=False)
    shards = folder.manifest.shards
    console = Console(soft_wrap=True, highlight=False)
    columns = (TextColumn("checking"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    number = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(shard.bytes for shard in shards))
        found = faults(
            folder,
            fast=config.fast,
            num_workers=config.num_workers,
            checked=lambda size: progress.advance(task, size),
        )
        for fault in found:
            number += 1
            console.print(fault, markup=False)
    unhashed = sum(not shard.hashes for shard in shards)
    if unhashed:
        rest = "their bytes are not checked" if config.fast else "only what must hold of cells is checked"
        console.print(f"{unhashed} of {len(shards)} files have no hashes in the manifest: {rest}", markup=False)
    if number:
        raise UserError(f"{path} has {number} fault{'s' if number > 1 else ''}: {REPAIR}")
    groups, cells = sum(len(shard.row_groups) for shard in shards), sum(shard.rows for shard in shards)
    size = sum(shard.bytes for shard in shards)
    hashed = ("hashes",) if unhashed < len(shards) else ("sizes",)
    what = " and ".join(hashed if config.fast else (*hashed, "cells"))
    text = f"{len(shards)} files, {groups:,} row groups, {cells:,} cells, {size:,} bytes"
    console.print(f"{path} is fine ({what}): {text}", markup=False)
