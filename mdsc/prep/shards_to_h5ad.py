"""Cells of a folder of shards as an h5ad file: all of them, a split, some conditions, or a random choice.

X holds raw counts (int32, CSR), obs the conditions and the split, var the genes' symbols and Ensembl ids, and
uns["mdsc_shards"] which folder the cells are from and how they were chosen. Memory holds a row group at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mdsc.config.flags import parse_flags
from mdsc.data.cell_subset import choose_cells, read_chosen
from mdsc.data.h5ad_writer import H5adWriter
from mdsc.data.shard_mixture import open_shards
from mdsc.errors import UserError
from mdsc.progress import CellProgress


@dataclass(frozen=True, kw_only=True)
class ShardsToH5adConfig:
    input: tyro.conf.Positional[Path]
    """Folder of shards."""
    output: Path
    """h5ad file."""
    split: str | None = None
    """Take cells of this split, e.g. train; by default of all."""
    where: tuple[str, ...] = ()
    """Take cells with these conditions, e.g. drug=DMSO_TF cell_line=A549; of one column, any of the values given."""
    max_cells: int | None = None
    """Take at most so many cells: a random choice, spread evenly over the shards."""
    first: bool = False
    """Take the first cells and not a random choice."""
    seed: int = 0
    """Seeds the choice."""


def shards_to_h5ad(config: ShardsToH5adConfig, *, show_progress: bool = False) -> int:
    """Write the file; the number of its cells."""
    import scipy.sparse as sp

    if config.output.is_dir():
        raise UserError(f"{config.output} is a folder (--output): give the name of a file, e.g. cells.h5ad")
    if config.output.suffix != ".h5ad":
        raise UserError(f"--output {config.output}: give a name that ends with .h5ad, e.g. cells.h5ad")
    if config.max_cells is not None and config.max_cells < 1:
        raise UserError(f"--max-cells is {config.max_cells}; give 1 or more")
    where = conditions_of(config.where)
    folder = open_shards(config.input)
    chosen = choose_cells(folder, config.split, where, config.max_cells, first=config.first, seed=config.seed)
    total, num_written = sum(len(found.rows) for found in chosen), 0
    uns = {
        "source": folder.path.absolute().name,
        "digest": folder.digest,
        "split": config.split or "",
        "where": np.array(config.where, dtype=object),
        "seed": config.seed,
        "cells_chosen": "all" if config.max_cells is None else "first" if config.first else "random",
    }
    vocabulary = folder.vocabulary
    columns = folder.condition_columns
    # A condition of that name says more than the split.
    columns_written = columns if "split" in columns else (*columns, "split")
    with (
        CellProgress("writing", total, show=show_progress, lines=True) as progress,
        H5adWriter(
            config.output,
            columns_written,
            {"ensembl_id": vocabulary.ensembl_ids},
            vocabulary.symbols,
            {"mdsc_shards": uns},
        ) as writer,
    ):
        progress.done(0)
        for found in chosen:
            cells = read_chosen(folder, found)
            shape = (len(found.rows), len(vocabulary))
            counts = sp.csr_matrix((cells.counts, cells.gene_index, cells.indptr), shape)
            counts.sort_indices()
            obs = {"split": [found.split] * len(found.rows)} | cells.conditions
            writer.write(counts, obs, cells.cell_ids)
            num_written += len(found.rows)
            progress.done(num_written)
    return total


def conditions_of(texts: Iterable[str]) -> dict[str, list[str]]:
    """["drug=a", "drug=b"] -> {"drug": ["a", "b"]}."""
    where: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"--where {text}: write it as COLUMN=VALUE, e.g. drug=DMSO_TF")
        where.setdefault(name, []).append(value)
    return where


def main(argv: Sequence[str] | None = None) -> None:
    """`mdsc shards-to-h5ad shards/ --output cells.h5ad`"""
    config = parse_flags(ShardsToH5adConfig, argv, __doc__)
    number = shards_to_h5ad(config, show_progress=True)
    print(f"{config.output}: {number:,} cells of {config.input}")
