"""Simulated cells in Tahoe-100M's format, for speed alone: its schema, CLS entries, sizes of cells and row groups.

Depths are drawn so that cells have some 1,300 nonzero genes of 62,710 and a mean nonzero count of 1.6, as published
(1,450 and 1.6); a gene's counts are multinomial. No biology: every cell has the same profile.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from mdsc.atomic import replacing
from mdsc.data.genes import FIRST_TOKEN_ID, GeneStatistics, GeneVocabulary
from mdsc.data.manifest import Manifest, Shard, load_manifest
from mdsc.data.shards import ShardFolder

NUM_GENES = 62_710
ROWS_PER_GROUP = 1000
CELLS_PER_SHARD = 28_000
CLS_ID, CLS_VALUE = 1, -2.0
DEPTH_OF_A_CELL = 2060
PROFILE_SIGMA = 2.3  # of the lognormal levels of genes: sets the share of ones among the nonzero counts
DEPTH_SIGMA = 0.35
POPULATION = 1 << 22  # molecules that cells are drawn from: a table look-up a molecule
CONDITIONS = ("drug", "cell_line_id", "plate")


def write_tahoe_cells(folder: Path, num_cells: int, seed: int = 0) -> dict[str, float]:
    """Write a folder of shards; give cells, nonzeros a cell, mean nonzero count and bytes a cell."""
    rng = np.random.default_rng(seed)
    level = rng.lognormal(sigma=PROFILE_SIGMA, size=NUM_GENES)
    molecules = rng.choice(NUM_GENES, size=POPULATION, p=level / level.sum()).astype(np.int32)
    totals, num_entries, shards = np.zeros((3, NUM_GENES)), 0, []
    with replacing(folder) as scratch:
        scratch.mkdir(parents=True)
        for number, first in enumerate(range(0, num_cells, CELLS_PER_SHARD)):
            rows = min(CELLS_PER_SHARD, num_cells - first)
            sizes = [min(ROWS_PER_GROUP, rows - done) for done in range(0, rows, ROWS_PER_GROUP)]
            path = scratch / f"train-{number:05d}.parquet"
            writer = None
            for group, size in enumerate(sizes):
                table, gene, count = _row_group(rng, molecules, first + group * ROWS_PER_GROUP, size)
                for row, weights in enumerate((None, count, np.log1p(count))):
                    totals[row] += np.bincount(gene, weights, minlength=NUM_GENES)
                num_entries += len(gene)
                writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            writer.close()
            shards.append(Shard(path.name, "train", rows, path.stat().st_size, tuple(sizes)))
        names = [f"GENE{number}" for number in range(NUM_GENES)]
        GeneVocabulary.of(names).save(scratch, GeneStatistics(*(totals / num_cells)))
        Manifest(CONDITIONS, tuple(shards), ({"file": "simulated", "cells": num_cells},)).save(scratch)
    size = sum(shard.bytes for shard in shards)
    return {
        "cells": num_cells,
        "nonzeros_per_cell": num_entries / num_cells,
        "mean_nonzero_count": float(totals[1].sum() / num_entries),
        "bytes_per_cell": size / num_cells,
    }


def repeated(source: Path, folder: Path, num_cells: int) -> ShardFolder:
    """At least `num_cells` cells: the shards of `source` listed again and again, as hard links."""
    manifest = load_manifest(source)
    wanted, shards = num_cells, []
    with replacing(folder) as scratch:
        scratch.mkdir(parents=True)
        os.link(source / manifest.genes, scratch / manifest.genes)
        for time in range(-(-num_cells // sum(shard.rows for shard in manifest.shards))):
            for shard in manifest.shards:
                if wanted > 0:
                    again = {**vars(shard), "file": f"again{time:04d}-{shard.file}"}
                    os.link(source / shard.file, scratch / again["file"])
                    shards.append(Shard(**again))
                    wanted -= shard.rows
        Manifest(manifest.condition_columns, tuple(shards), manifest.sources).save(scratch)
    return ShardFolder.open(folder)


def _row_group(
    rng: np.random.Generator, molecules: np.ndarray, first: int, rows: int
) -> tuple[pa.Table, Int64[np.ndarray, " nnz"], Int64[np.ndarray, " nnz"]]:
    """A table of Tahoe's columns; and genes (places in the vocabulary) and counts of its entries without CLS."""
    depth = np.maximum(rng.lognormal(np.log(DEPTH_OF_A_CELL), DEPTH_SIGMA, size=rows).astype(np.int64), 300)
    drawn = molecules[rng.integers(0, POPULATION, size=depth.sum())]
    key = np.repeat(np.arange(rows) * NUM_GENES, depth) + drawn
    key.sort()
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    count = np.diff(np.append(starts, len(key)))
    cell, gene = np.divmod(key[starts], NUM_GENES)
    per_cell = np.bincount(cell, minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(per_cell + 1)])
    genes = np.full(offsets[-1], CLS_ID, dtype=np.int64)
    values: Float32[np.ndarray, " entries"] = np.full(offsets[-1], CLS_VALUE, dtype=np.float32)
    is_gene = np.ones(offsets[-1], dtype=bool)
    is_gene[offsets[:-1]] = False
    genes[is_gene], values[is_gene] = gene + FIRST_TOKEN_ID, count
    offsets = pa.array(offsets.astype(np.int32))
    columns = {
        "genes": pa.ListArray.from_arrays(offsets, pa.array(genes)),
        "expressions": pa.ListArray.from_arrays(offsets, pa.array(values)),
    }
    return pa.table(columns | dict(_strings(rng, first, rows))), gene, count


def _strings(rng: np.random.Generator, first: int, rows: int) -> Iterator[tuple[str, pa.Array]]:
    """The string columns; `cell_id` stands for BARCODE_SUB_LIB_ID, as in all that is prepared for mdsc."""
    drug, line = rng.integers(0, 379, size=rows), rng.integers(0, 50, size=rows)
    plate = 1 + (first // CELLS_PER_SHARD) % 14
    yield "drug", pa.array([f"drug number {number}" for number in drug])
    yield "sample", pa.array([f"smp_{1500 + number}" for number in drug])
    yield "cell_id", pa.array([f"{number // 96:02d}_{number % 96:03d}_{number:07d}-lib_{plate}" for number in
                               range(first, first + rows)])  # fmt: skip
    yield "cell_line_id", pa.array([f"CVCL_{number:04d}" for number in line])
    yield "moa-fine", pa.array([f"mechanism {number % 25}" for number in drug])
    yield "canonical_smiles", pa.array([f"CC(=O)N{'C' * (number % 40)}O" for number in drug])
    yield "pubchem_cid", pa.array([f"{1000 + number}.0" for number in drug])
    yield "plate", pa.array([f"plate{plate}"] * rows)
