"""AnnData files to a folder of shards: the way of a user's own cells into training.

Files are read chunk by chunk, in several processes if asked, into parts beside the output folder, and the parts are
written as shards in the files' order: so the shards are the same bytes for any number of processes, and after any
interruption. A call that finds parts of files it is to read goes on from them.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from mdsc.atomic import alone, replacing
from mdsc.config.flags import parse_flags
from mdsc.data.anndata_counts import open_counts
from mdsc.data.genes import GeneVocabulary, gene_identifiers
from mdsc.data.output_folders import check_output
from mdsc.data.shard_writer import CELLS_PER_SHARD, ShardWriter
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.file_parts import FilePart, PartReaders, read_part
from mdsc.prep.file_work import going_on
from mdsc.prep.held_out import SplitCheck, SplitRule, check_columns
from mdsc.prep.joined_genes import FileGenes, join_genes, load_vocabulary
from mdsc.prep.obs_report import ObsReport, prefixes
from mdsc.progress import CellProgress


@dataclass(frozen=True, kw_only=True)
class H5adConfig:
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """One or more h5ad files with raw counts. The genes of all are joined; a file without a gene has 0 of it. Cells of
    several files are called FILE:NAME."""
    output_dir: Path
    """Folder for the shards; replaced if it holds shards already."""
    condition_columns: tuple[str, ...] = ()
    """Columns of obs that a model may be told, e.g. drug cell_line."""
    split_column: str | None = None
    """Column of obs that says which cells are for training ("train") and which are not; by default all are."""
    heldout_fraction: float | None = None
    """Share of cells for split "heldout", between 0 and 1; a cell's name decides, so that it stays with new files."""
    heldout_by: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """A column of obs and one or more values, e.g. donor d3: cells with these are of split "heldout". May be given
    several times, and with a share; a cell is held out if any of them says so."""
    layer: str | None = None
    """Where the counts are: the name of a layer, or "raw"; by default X."""
    vocabulary: Path | None = None
    """genes.parquet, checkpoint or folder of shards whose genes to take, so that the cells fit a trained model."""
    duplicate_genes: Literal["error", "sum"] = "error"
    """What to do where a file has several columns for a gene: stop, or add up their counts."""
    num_workers: int = 1
    """Processes that read files, one file each at a time. The shards are the same for any number."""
    cells_per_shard: int = CELLS_PER_SHARD
    """Cells per parquet file."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is to be done, after all files were looked at and before anything is written."""

    config: H5adConfig
    vocabulary: GeneVocabulary
    parts: tuple[FilePart, ...]
    report: tuple[str, ...]
    """Lines on genes and cells, for a person."""

    @classmethod
    def of(cls, config: H5adConfig) -> "Preparation":
        """Check settings and files; a `UserError` names what is wrong."""
        if not config.inputs:
            raise UserError("no h5ad file is given")
        if config.num_workers < 1:
            raise UserError(f"--num-workers is {config.num_workers}; give 1 or more")
        if config.cells_per_shard < 1:
            raise UserError(f"--cells-per-shard is {config.cells_per_shard}; give 1 or more")
        config = replace(config, condition_columns=tuple(dict.fromkeys(config.condition_columns)))
        check_output(config.output_dir, config.inputs)
        rule = SplitRule(config.split_column, config.heldout_fraction, config.heldout_by)
        given = None if config.vocabulary is None else load_vocabulary(config.vocabulary)
        before = prefixes(config.inputs)
        columns = tuple(dict.fromkeys((*rule.columns, *config.condition_columns)))
        split_check, obs_report, files, num_cells = SplitCheck(rule), ObsReport(config.condition_columns), [], []
        for path in config.inputs:
            with open_counts(path, config.layer, obs_columns=columns, unique_genes=False) as source:
                check_columns(source.name, source.obs_columns, config.condition_columns, rule)
                split_check.add(source.obs, source.name)
                obs_report.add(source.obs, source.name)
                files.append(FileGenes(source.name, *gene_identifiers(source.var)))
                num_cells.append(len(source.obs))
        split_check.finish()
        genes = join_genes(files, given, config.duplicate_genes)
        parts = [
            FilePart.of(
                parts_folder(config.output_dir),
                path,
                genes.vocabulary,
                places,
                layer=config.layer,
                num_cells=cells,
                condition_columns=config.condition_columns,
                rule=rule,
                prefix=prefix,
            )
            for path, places, cells, prefix in zip(config.inputs, genes.places, num_cells, before, strict=True)
        ]
        report = (*genes.report, *_about_several_files(parts), *obs_report.lines())
        return cls(config, genes.vocabulary, tuple(parts), report)

    def carry_out(self, *, show_progress: bool = False) -> ShardFolder:
        """Write the shards; see `prepare_h5ad`."""
        with alone(self.config.output_dir):
            return self._carry_out(show_progress)

    def _carry_out(self, show_progress: bool) -> ShardFolder:
        scratch, output = parts_folder(self.config.output_dir), self.config.output_dir
        _keep_only(scratch, self.parts)
        try:
            self._write(scratch / "shards", show_progress)
        except BaseException:
            _keep_only(scratch, self.parts)
            if not any(scratch.iterdir()):
                scratch.rmdir()
            raise
        check_output(output, self.config.inputs)  # hours may have gone by
        with replacing(output) as beside:
            os.replace(scratch / "shards", beside)
        shutil.rmtree(scratch)
        return ShardFolder.open(output)

    def _write(self, folder: Path, show_progress: bool) -> None:
        sources = [{"file": part.source.name, "cells": part.num_cells} for part in self.parts]
        total = sum(part.num_cells for part in self.parts)
        with (
            CellProgress("preparing", total, show=show_progress, lines=True) as progress,
            PartReaders(self.parts, self.config.num_workers) as readers,
            ShardWriter(
                folder,
                self.vocabulary,
                self.config.condition_columns,
                cells_per_shard=self.config.cells_per_shard,
                sources=sources,
            ) as writer,
        ):
            if readers.num_found:
                progress.say(f"going on: {readers.num_found} of {len(self.parts)} files were read before")
            num_written = 0

            def show() -> None:
                # Reading a cell and writing it take about as long.
                progress.done((readers.num_cells + num_written) / 2)

            show()
            for part in self.parts:
                for _ in readers.until_there(part):
                    show()
                for cells in read_part(part):
                    writer.write(cells.split, cells.counts, cells.conditions, cells.cell_ids)
                    num_written += len(cells.cell_ids)
                    show()


def prepare_h5ad(config: H5adConfig) -> ShardFolder:
    """Write the shards. All files are checked before the first is written; memory holds some thousand cells.

    Cells keep their names; with several files these are preceded by the file's (`file:name`), to stay apart.
    """
    return Preparation.of(config).carry_out()


def parts_folder(output_dir: Path) -> Path:
    """Where parts wait beside the output folder."""
    output = Path(output_dir).absolute()
    return output.with_name(f".{output.name}.parts")


def _about_several_files(parts: Sequence[FilePart]) -> list[str]:
    if len(parts) == 1:
        return []
    lines = [f"cells are called FILE:NAME ({parts[0].prefix}..., {parts[1].prefix}...)"]
    lacking = {part: part.num_genes - len(np.unique(part.places[part.places >= 0])) for part in parts}
    if most := max(lacking, key=lacking.get) if any(lacking.values()) else None:
        lines.append(
            f"genes that a file lacks are zeros of its cells, at most {lacking[most]:,} of {most.num_genes:,} (in "
            f"{most.source}).\nWhere they were not measured, prepare each file apart, and join the folders by `mdsc "
            "prepare mixture`"
        )
    return lines


def _keep_only(folder: Path, parts: Sequence[FilePart]) -> None:
    """Make the folder, and remove what other settings or other files left there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {part.path.name for part in parts}
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in wanted:
            path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/h5ad.py cells.h5ad --output-dir shards/`"""
    config = parse_flags(H5adConfig, argv, __doc__)
    preparation = Preparation.of(config)
    with going_on(config.output_dir):
        folder = preparation.carry_out(show_progress=True)
    for line in preparation.report:
        print(line)
    print(summary(folder))


def summary(folder: ShardFolder) -> str:
    """Two lines on what a folder of shards holds."""
    cells = ", ".join(f"{folder.num_cells(split):,} {split}" for split in folder.splits)
    nonzero = folder.statistics.detection_rate.sum()
    return (
        f"{folder.path}: {cells} cells in {len(folder.manifest.shards)} shards, {len(folder.vocabulary):,} genes\n"
        f"training cells have {nonzero:,.0f} genes above zero and {folder.statistics.mean_count.sum():,.0f} counts on "
        f"average; conditions: {', '.join(folder.condition_columns) or 'none'}"
    )
