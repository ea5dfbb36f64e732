"""Small folders in Tahoe's format with made-up side tables, and what was in them."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from tahoe_format import SideTables, write_tahoe

from mdsc.config.schema import DataConfig
from mdsc.data.loader import CellLoader
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.prep.tahoe import TahoeConfig, prepare_tahoe

CELLS_OF_PLATE = {"plate1": 330, "plate10": 150, "plate2": 240}


def small_tahoe(folder: Path, **options) -> Path:
    """720 cells of three plates in three files of row groups of 100; two row groups have cells of two plates."""
    options = {"rows_per_file": 250, "rows_per_group": 100, "genes_per_cell": 40} | options
    tables = SideTables.made_up()
    tables.sample["plate"] = tables.sample["plate"].replace({"plate3": "plate10"})
    return write_tahoe(folder, CELLS_OF_PLATE, tables, **options)


def prepared(source: Path | str, output: Path, **options) -> ShardFolder:
    folder, _ = prepare_tahoe(TahoeConfig(source=str(source), output_dir=output, num_workers=1, **options))
    return folder


def published(source: Path) -> pd.DataFrame:
    """All cells of a folder, by their id, as its files have them, with the file of each."""
    paths = sorted((source / "data").iterdir())
    cells = [pq.read_table(path).to_pandas().assign(file=f"data/{path.name}") for path in paths]
    return pd.concat(cells).set_index("BARCODE_SUB_LIB_ID")


def ids_and_conditions(folder: ShardFolder, split: str) -> dict[str, dict[str, str]]:
    """Conditions of each cell of a split."""
    cells = {}
    for ref in folder.row_groups(split):
        group = folder.read(ref)
        for row, name in enumerate(group.cell_ids):
            cells[name] = {column: values[row] for column, values in group.conditions.items()}
    return cells


def first_batches(folder: ShardFolder, num_steps: int = 12, workers: int = 0) -> list[dict[str, np.ndarray]]:
    """What the loader gives for some steps (over more than an epoch of a small folder), as arrays."""
    settings = DataConfig(num_lanes=4, window=2, prefetch=2 if workers else 0, num_genes=32, workers=workers)
    levels = folder.manifest.conditions
    loader = CellLoader(folder, make_tokenizer("rank"), settings, seed=3, global_batch_size=64, levels=levels)
    with closing(loader.iterate()) as batches:
        return [arrays(next(batches)) for _ in range(num_steps)]


def arrays(batch) -> dict[str, np.ndarray]:
    found = {}
    for name, value in vars(batch).items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{name}{key}": np.asarray(part) for key, part in parts}
    return found


def same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> bool:
    assert [batch.keys() for batch in one] == [batch.keys() for batch in other]
    return all((batch[name] == others[name]).all() for batch, others in zip(one, other, strict=True) for name in batch)
