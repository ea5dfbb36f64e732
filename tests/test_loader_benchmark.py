"""benchmarks/loader.py on a few cells: its simulation is what it says, and every way to read sees every cell."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mdsc.data.shards import ShardFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import loader_measure
import loader_paths
import tahoe_cells
from plate_mixing import mixing

NUM_CELLS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ShardFolder:
    path = tmp_path_factory.mktemp("cells") / "shards"
    facts = tahoe_cells.write_tahoe_cells(path, NUM_CELLS)
    assert 1.4 < facts["mean_nonzero_count"] < 1.8
    assert 1100 < facts["nonzeros_per_cell"] < 1600
    return ShardFolder.open(path)


def test_cells_are_as_tahoe_has_them(folder):
    table = pq.read_table(folder.path / "train-00000.parquet")
    assert {cell[0] for cell in table["genes"].to_pylist()} == {1}
    assert {cell[0] for cell in table["expressions"].to_pylist()} == {-2.0}
    group = folder.read(folder.row_groups()[0])
    assert len(group.counts) == sum(map(len, table["genes"].to_pylist())) - NUM_CELLS
    assert np.isclose(folder.statistics.mean_count.sum(), group.counts.sum() / NUM_CELLS)


@pytest.mark.parametrize("path", ["raw", "ours", "hf-batches", "hf-rows", "hf-collated"])
def test_each_way_reads_all_cells(folder, path):
    if path.startswith("hf"):
        pytest.importorskip("datasets")
    assert sum(loader_measure.cells_read(folder, path, 16)) == NUM_CELLS


def test_the_collator_takes_cls_and_some_genes_in_quantile_bins(folder):
    table = pq.read_table(folder.path / "train-00000.parquet", columns=["genes", "expressions"])
    batch = loader_paths.collate(table.slice(0, 4).to_pylist())
    assert batch["genes"].shape == (4, 1024)
    assert (batch["genes"][:, 0] == 1).all()
    bins = batch["values"][batch["genes"] >= 3]
    assert bins.min() >= 1
    assert bins.max() == 50


def test_the_same_cells_again(folder, tmp_path):
    many = tahoe_cells.repeated(folder.path, tmp_path / "many", 5 * NUM_CELLS)
    assert many.num_cells() == 5 * NUM_CELLS
    assert len({ref.file for ref in many.row_groups()}) == 5


def test_a_device_batch_mixes_plates():
    mixed = mixing(128, 8, 16, num_batches=20)
    assert mixed.entropy > 0.97 * mixed.ideal
