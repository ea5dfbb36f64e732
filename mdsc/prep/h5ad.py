"""AnnData files to a folder of shards: the way of a user's own cells into training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from mdsc.data.anndata_counts import CountSource, open_counts
from mdsc.data.genes import GeneVocabulary, gene_identifiers, refuse_duplicates
from mdsc.data.shard_writer import CELLS_PER_SHARD, ShardWriter, check_output
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp


@dataclass(frozen=True, kw_only=True)
class H5adConfig:
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """One or more h5ad files with raw counts. The genes of all are joined; a file without a gene has 0 of it."""
    output_dir: Path
    """Folder for the shards; replaced if it holds shards already."""
    condition_columns: tuple[str, ...] = ()
    """Columns of obs that a model may be told, e.g. drug cell_line."""
    split_column: str | None = None
    """Column of obs that says which cells are for training ("train") and which are not; by default all are."""
    layer: str | None = None
    """Where the counts are: the name of a layer, or "raw"; by default X."""
    cells_per_shard: int = CELLS_PER_SHARD
    """Cells per parquet file."""


def prepare_h5ad(config: H5adConfig) -> ShardFolder:
    """Write the shards. All files are checked before the first is written; memory holds some thousand cells.

    Cells keep their names; with several files these are preceded by the file's (`file:name`), to stay apart.
    """
    if not config.inputs:
        raise UserError("no h5ad file is given")
    check_output(config.output_dir)
    symbols: dict[str, str] = {}
    sources, file_symbols = [], []
    for path in config.inputs:
        with open_counts(path, config.layer) as source:
            _check_columns(source, config)
            names, ids = gene_identifiers(source.var)
            refuse_duplicates(names, source.name)
            if symbols and not symbols.keys() & set(names):
                mine, others = ", ".join(names[:3]), ", ".join(list(symbols)[:3])
                raise UserError(
                    f"{path} has no gene in common with {config.inputs[0]}: it has {mine}, ..., not {others}, ...\n"
                    "Name the genes of all files alike, or prepare them apart."
                )
            for name, ensembl_id in zip(names, ids, strict=True):
                symbols[name] = symbols.get(name) or ensembl_id
            file_symbols.append(names)
            sources.append({"file": path.name, "cells": len(source.obs)})
    vocabulary = GeneVocabulary.of(list(symbols), list(symbols.values()))
    with ShardWriter(
        config.output_dir,
        vocabulary,
        config.condition_columns,
        cells_per_shard=config.cells_per_shard,
        sources=sources,
    ) as writer:
        for path, names in zip(config.inputs, file_symbols, strict=True):
            prefix = f"{path.stem}:" if len(config.inputs) > 1 else ""
            with open_counts(path, config.layer) as source:
                _write(writer, source, vocabulary.match(names, source.name), config, prefix)
    return ShardFolder.open(config.output_dir)


def _write(writer: ShardWriter, source: CountSource, places: np.ndarray, config: H5adConfig, prefix: str) -> None:
    import scipy.sparse as sp

    start = 0
    for counts in source.chunks():
        obs = source.obs.iloc[start : start + counts.shape[0]]
        start += counts.shape[0]
        shape = (len(obs), len(writer.vocabulary))
        counts = sp.csr_matrix((counts.data, places[counts.indices], counts.indptr), shape)
        splits = obs[config.split_column].astype(str).to_numpy() if config.split_column else np.full(len(obs), "train")
        for split in dict.fromkeys(splits.tolist()):
            _write_split(writer, split, counts, obs, np.flatnonzero(splits == split), prefix)


def _write_split(
    writer: ShardWriter, split: str, counts: "sp.csr_matrix", obs: "pd.DataFrame", rows: np.ndarray, prefix: str
) -> None:
    obs = obs.iloc[rows]
    conditions = {name: strings(obs[name]) for name in writer.condition_columns}
    writer.write(split, counts[rows], conditions, [f"{prefix}{name}" for name in obs.index])


def strings(column: "pd.Series") -> list[str | None]:
    """A condition column as text; None where a value is missing."""
    return [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]


def _check_columns(source: CountSource, config: H5adConfig) -> None:
    wanted = [("--condition-columns", name) for name in config.condition_columns]
    if config.split_column is not None:
        wanted.append(("--split-column", config.split_column))
    for flag, name in wanted:
        if name not in source.obs:
            columns = ", ".join(map(str, source.obs.columns)) or "none"
            raise UserError(f"{source.name} has no column {name!r} in obs ({flag}): it has {columns}")
    if config.split_column is not None:
        column = source.obs[config.split_column]
        if column.isna().any():
            raise UserError(f"{source.name}: column {column.name!r} (--split-column) has no value for some cells")


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/h5ad.py cells.h5ad --output-dir shards/`"""
    config = tyro.cli(H5adConfig, args=argv, description=__doc__)
    print(summary(prepare_h5ad(config)))


def summary(folder: ShardFolder) -> str:
    """Two lines on what a folder of shards holds."""
    cells = ", ".join(f"{folder.num_cells(split):,} {split}" for split in folder.splits)
    nonzero = folder.statistics.detection_rate.sum()
    return (
        f"{folder.path}: {cells} cells in {len(folder.manifest.shards)} shards, {len(folder.vocabulary):,} genes\n"
        f"training cells have {nonzero:,.0f} genes above zero and {folder.statistics.mean_count.sum():,.0f} counts on "
        f"average; conditions: {', '.join(folder.condition_columns) or 'none'}"
    )
