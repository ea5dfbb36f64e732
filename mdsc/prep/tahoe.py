"""Tahoe-100M (or files in its format) as a folder of shards: the published parquet files are read as they are.

Nothing is copied or rewritten (unless by --rewrite): the folder has a manifest, which says where the files are, a hash
of each row group, and which cells are held out; and the genes with their statistics.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from mdsc.atomic import alone, replacing
from mdsc.config.flags import parse_flags
from mdsc.data.genes import GeneVocabulary
from mdsc.data.manifest import Manifest, Shard
from mdsc.data.output_folders import check_output
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.file_work import DoneFiles, going_on, on_files
from mdsc.prep.h5ad import summary
from mdsc.prep.tahoe_conditions import ConditionSources, Values
from mdsc.prep.tahoe_files import choose_files
from mdsc.prep.tahoe_heldout import heldout_rule, values_without_cells
from mdsc.prep.tahoe_metadata import SideTables
from mdsc.prep.tahoe_rewrite import rewrite_file
from mdsc.prep.tahoe_scan import CELL_ID, FileScan, ScanPlan, scan_file
from mdsc.prep.tahoe_source import TahoeSource, download, find_source
from mdsc.prep.tahoe_statistics import sampled_statistics

# Threads that wait for a network, to each process that would compute.
THREADS = 4


@dataclass(frozen=True, kw_only=True)
class TahoeConfig:
    source: str
    """Folder with data/train-*.parquet, or owner/name[@revision] of a dataset on the hub, or a URL for fsspec."""
    output_dir: Path
    """Folder for manifest and genes; replaced if it holds shards already."""
    metadata: Path | None = None
    """Folder of gene_metadata.parquet and the other side tables, where they are not with the source."""
    condition_columns: tuple[str, ...] = ("drug", "cell_line", "plate", "dose")
    """Conditions that a model may be told: drug, cell_line, plate, dose, sample, cell_line_id, moa-fine, ..."""
    plates: tuple[str, ...] = ()
    """Take the cells of these plates only."""
    max_shards: int | None = None
    """Take so many files, at even distances over all of them (they are sorted by plate)."""
    heldout_fraction: float = 0.0
    """Share of cells that is held out, by a hash of the cell's id."""
    heldout_by: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """COLUMN VALUE [VALUE ...]: hold out all cells with these values of plate, drug, cell_line, dose, cell_line_id or
    sample. May be given several times; a cell is held out if any of them says so."""
    statistics_cells: int = 200_000
    """Training cells, in whole row groups at even distances, that detection rates and mean counts are taken from."""
    hashes: bool = True
    """Hash every byte, so that damage is found when it is read. Without, only the columns of text are read here."""
    stream: bool = False
    """Leave files of the hub where they are, and read a row group at a time in training (a URL is always streamed)."""
    hash_streamed: bool = False
    """Read streamed files whole to hash all of their row groups. Without, their footers and first row groups are."""
    download_dir: Path | None = None
    """Folder for files of the hub; by default the cache of huggingface_hub."""
    rewrite: bool = False
    """Write the cells anew in a compact form instead of referring to the files."""
    num_workers: int = min(8, os.cpu_count() or 1)
    """Processes; 1 works in this one. For streamed files four threads each."""


def prepare_tahoe(config: TahoeConfig) -> tuple[ShardFolder, list[str]]:
    """Make the folder; give it, and lines on what was done for the user.

    What is done of a file is kept beside the output until all are: the same command goes on after an interruption.
    """
    _check(config)
    source = find_source(config.source)
    _check_place(config, source)
    with alone(config.output_dir):
        return _prepare(config, source)


def _prepare(config: TahoeConfig, source: TahoeSource) -> tuple[ShardFolder, list[str]]:
    tables = source.side_tables(config.metadata)
    vocabulary, repeated = tables.vocabulary()
    conditions = ConditionSources.of(config.condition_columns, tables)
    rule = heldout_rule(config.heldout_fraction, config.heldout_by, tables)
    threads = THREADS * config.num_workers
    files = choose_files(source, config.plates, config.max_shards, num_workers=threads)
    there, published = len(source.files), source.of_published()
    of = f" (which has {there:,} of {published:,})" if there < published else ""
    lines = [f"{len(files):,} of the {there:,} files of {config.source}{of}"]
    if source.root.startswith("hf://datasets/") and not config.stream:
        source = download(source, files, config.download_dir)
    if not source.is_remote:
        check_output(config.output_dir, [source.root])

    # Hashes of files that are written anew are taken of the new ones.
    kind = "all" if config.hashes and (not source.is_remote or config.hash_streamed) else "footer"
    kind = "none" if config.rewrite or not config.hashes else kind
    columns = tuple(dict.fromkeys((*conditions.columns, *rule.columns)))
    plan = ScanPlan(columns=columns, hashes=kind, heldout=rule, plates=config.plates)
    work = _Work(config, source, plan, vocabulary)
    scans = work.scan(files)
    values = {name: _added(scan.values[name] for scan in scans.values()) for name in plan.columns}
    found = conditions.resolve(values)
    shards = {file: work.shard(file, scan) for file, scan in scans.items() if any(scan.cells)}
    if not any(scan.cells[0] for scan in scans.values()):
        work.done.forget()
        raise UserError("no cell is left to train on: hold out fewer cells, or take more files or other --plates")
    lines += _about_values_without_cells(config, tables, values, work.done)
    if config.rewrite:
        before = sum(shard.bytes for shard in shards.values()), sum(shard.rows for shard in shards.values())
        shards = work.rewrite(shards)
        lines.append(_saving(before, shards.values()))

    check_output(config.output_dir)
    with replacing(config.output_dir) as beside:
        beside.mkdir()
        if config.rewrite:
            for file in shards:
                (beside / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work.rewritten(file), beside / file)
        manifest = Manifest(
            conditions=found.levels,
            shards=tuple(shards[file] for file in sorted(shards)),
            sources=tuple({"file": file, "cells": sum(scans[file].cells)} for file in sorted(shards)),
            cell_id_column=CELL_ID,
            lookups=found.lookups,
            root="" if config.rewrite else source.root,
        )
        folder = ShardFolder(beside, manifest, vocabulary)
        statistics, cells = sampled_statistics(folder, config.statistics_cells)
        vocabulary.save(beside, statistics)
        manifest.save(beside)
    work.done.forget()
    if repeated:
        lines.append(f"{repeated} gene symbols stand for several genes: each of these is named SYMBOL_ENSEMBL")
    lines += [*found.notes, f"gene statistics are of {cells:,} training cells, spread evenly over the files"]
    lines += _about_hashes(plan.hashes, config)
    return ShardFolder.open(config.output_dir), lines


class _Work:
    """What is done file by file."""

    def __init__(self, config: TahoeConfig, source: TahoeSource, plan: ScanPlan, vocabulary: GeneVocabulary) -> None:
        self.source, self.plan, self.num_workers = source, plan, config.num_workers
        self.sizes = dict(source.files)
        self.index_of_token = vocabulary.index_of_token
        self.done = DoneFiles(
            config.output_dir.resolve(), [source.root, asdict(plan), vocabulary.digest, config.rewrite]
        )

    def state(self, file: str) -> list[int]:
        place = self.source.location(file)
        return [self.sizes[file]] if self.source.is_remote else [self.sizes[file], place.stat().st_mtime_ns]

    def scan(self, files: Sequence[str]) -> dict[str, FileScan]:
        kept = {file: self.done.get(file, self.state(file)) for file in files}
        tasks = {
            file: (self.source.location(file), self.sizes[file], self.plan, self.index_of_token)
            for file in files
            if kept[file] is None
        }
        workers = self.num_workers * (THREADS if self.source.is_remote else 1)
        what = "hashing" if self.plan.hashes == "all" else "reading"
        for file, scan in on_files(scan_file, tasks, what=what, num_workers=workers, in_threads=self.source.is_remote):
            kept[file] = scan.to_dict()
            self.done.put(file, self.state(file), kept[file])
        return {file: FileScan.from_dict(kept[file]) for file in files}

    def shard(self, file: str, scan: FileScan) -> Shard:
        return Shard(
            file=file,
            split="train",
            bytes=self.sizes[file],
            row_groups=scan.row_groups,
            hashes=scan.hashes,
            heldout=scan.heldout,
            unused=scan.unused,
        )

    def rewritten(self, file: str) -> Path:
        return self.done.folder / "rewritten" / file

    def rewrite(self, shards: dict[str, Shard]) -> dict[str, Shard]:
        kept = {file: self.done.get(f"rewritten {file}", self.state(file)) for file in shards}
        tasks = {
            file: (self.source.location(file), shard, self.plan.columns, self.index_of_token, self.rewritten(file))
            for file, shard in shards.items()
            if kept[file] is None or not self.rewritten(file).is_file()
        }
        for file, shard in on_files(rewrite_file, tasks, what="writing", num_workers=self.num_workers):
            kept[file] = asdict(shard)
            self.done.put(f"rewritten {file}", self.state(file), kept[file])
        return {
            file: Shard(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})
            for file, stored in kept.items()
        }


def _check(config: TahoeConfig) -> None:
    check_output(config.output_dir, [config.source] if Path(config.source).is_dir() else [])
    for flag, value in (
        ("--max-shards", config.max_shards),
        ("--statistics-cells", config.statistics_cells),
        ("--num-workers", config.num_workers),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: give 1 or more")
    if config.hash_streamed and not config.hashes:
        raise UserError("--hash-streamed and --no-hashes: choose one")


def _check_place(config: TahoeConfig, source: TahoeSource) -> None:
    is_hub = source.root.startswith("hf://datasets/")
    for flag, given, fits in (
        ("--stream", config.stream, source.is_remote),
        ("--hash-streamed", config.hash_streamed, source.is_remote and (config.stream or not is_hub)),
        ("--download-dir", config.download_dir is not None, is_hub and not config.stream),
    ):
        if given and not fits:
            what = (
                "a folder here" if not source.is_remote else "streamed" if config.stream or not is_hub else "downloaded"
            )
            raise UserError(f"{flag} has no meaning for --source {config.source}, which is {what}: leave it out")


def _about_values_without_cells(config: TahoeConfig, tables: SideTables, values: Values, done: DoneFiles) -> list[str]:
    """A `UserError` where all files were read, and a line where only some were: others may have such cells."""
    without = values_without_cells(config.heldout_by, tables, values)
    if not without:
        return []
    told = f"no cell of the files that were read has {', '.join(without)} (--heldout-by)"
    if not config.plates and config.max_shards is None:
        done.forget()
        raise UserError(f"{told}: leave that out, or take files that have such cells")
    return [f"note: {told}: nothing is held out by that"]


def _added(parts) -> dict[str, tuple[int, int]]:
    total: dict[str, tuple[int, int]] = {}
    for part in parts:
        for value, (train, heldout) in part.items():
            before = total.get(value, (0, 0))
            total[value] = (before[0] + train, before[1] + heldout)
    return total


def _saving(before: tuple[int, int], shards) -> str:
    size, cells = sum(shard.bytes for shard in shards), sum(shard.rows for shard in shards)
    old, new = before[0] / before[1], size / max(cells, 1)
    return f"rewritten: {old:,.0f} bytes a cell before, {new:,.0f} now ({1 - new / old:.0%} saved)"


def _about_hashes(kind: str, config: TahoeConfig) -> list[str]:
    if not config.rewrite and kind == "none":
        return ["without hashes: damage to a file is found only where it does not decode or gives impossible counts"]
    if not config.rewrite and kind == "footer":
        return [
            "of streamed files the footers and first row groups are hashed; other row groups are trusted when they are "
            "first read, and checked in the cache only (--hash-streamed reads and hashes all)"
        ]
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/tahoe.py --source tahoe/ --output-dir shards/`"""
    config = parse_flags(TahoeConfig, argv, __doc__)
    with going_on(config.output_dir):
        folder, lines = prepare_tahoe(config)
    print("\n".join([summary(folder), *lines]))
