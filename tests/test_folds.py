"""Folds of the training cells: fixed by a cell's address, about equal, and left out of what its cells are told."""

import numpy as np
import pytest
import torch
from simulated_shards import simulated_counts, write_shards

from mdsc.config.schema import DataConfig
from mdsc.data import shard_statistics as statistics_module
from mdsc.data.folds import NUM_FOLDS, folds_of_rows
from mdsc.data.loader import CellLoader
from mdsc.data.shard_statistics import shard_statistics
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.data.validation_split import split_rows

NUM_CELLS, NUM_GENES, CELLS_PER_SHARD, FRACTION = 400, 30, 100, 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ShardFolder:
    counts = numbered_counts()
    return write_shards(tmp_path_factory.mktemp("folds") / "shards", counts, cells_per_shard=CELLS_PER_SHARD)


def numbered_counts():
    """Gene 0 of cell i has i + 1 counts, which tells a cell apart."""
    counts = simulated_counts(NUM_CELLS, NUM_GENES, mean=2.0).tolil()
    counts[:, 0] = np.arange(1, NUM_CELLS + 1)[:, None]
    return counts.tocsr()


def fold_of_cell(folder: ShardFolder) -> np.ndarray:
    return np.concatenate([folds_of_rows(ref) for ref in folder.row_groups("train")])


def test_folds_are_about_equal_and_differ_between_row_groups(folder: ShardFolder):
    folds = fold_of_cell(folder)
    number = np.bincount(folds, minlength=NUM_FOLDS + 1)
    assert number[0] == 0
    assert number[1:].min() > 0.6 * NUM_CELLS / NUM_FOLDS
    assert (folds[:100] != folds[100:200]).any()


def test_the_loader_tells_each_training_cell_its_fold(folder: ShardFolder):
    settings = DataConfig(num_genes=NUM_GENES, num_lanes=4, validation_fraction=FRACTION, prefetch=0)
    folds, seen = fold_of_cell(folder), set()
    for seed, ranks in ((0, [0]), (1, [0, 1])):
        for rank in ranks:
            loader = CellLoader(folder, make_tokenizer("rank"), settings, seed=seed, global_batch_size=16,
                                rank=rank, world_size=len(ranks))  # fmt: skip
            for _, batch in zip(range(12), loader.iterate(), strict=False):
                cells = batch.counts.gather(1, (batch.gene_ids == 0).int().argmax(dim=1, keepdim=True))[:, 0] - 1
                np.testing.assert_array_equal(batch.fold, folds[cells])
                seen |= set(batch.fold.tolist())
            assert not loader.validation_batch(20).fold.any()
    assert seen == set(range(1, NUM_FOLDS + 1))


def test_statistics_without_a_fold_are_those_of_the_other_cells(folder: ShardFolder):
    found = shard_statistics(folder, make_tokenizer("rank"), rank=NUM_GENES, validation_fraction=FRACTION)
    refs = folder.row_groups("train")
    rows = np.concatenate([split_rows(ref, FRACTION)[0] + CELLS_PER_SHARD * i for i, ref in enumerate(refs)])
    values, folds = np.log1p(numbered_counts().toarray()[rows]), fold_of_cell(folder)[rows]
    assert len(found.without_fold) == NUM_FOLDS
    for fold, factors in enumerate(found.without_fold, start=1):
        others = values[folds != fold]
        np.testing.assert_allclose(factors.gene_mean, others.mean(axis=0))
        np.testing.assert_allclose(factors.gene_sd, others.std(axis=0))
        covariance = factors.gene_vectors @ factors.gene_vectors.T
        np.testing.assert_allclose(covariance, np.cov(others.T, bias=True), atol=1e-9)


def test_many_cells_need_no_fits_without_folds(folder: ShardFolder, monkeypatch):
    options = {"rank": 2, "validation_fraction": FRACTION}
    assert shard_statistics(folder, make_tokenizer("rank"), cross_fit=False, **options).without_fold == ()
    monkeypatch.setattr(statistics_module, "MANY_CELLS", 300)
    assert shard_statistics(folder, make_tokenizer("rank"), **options).without_fold == ()


def test_folds_travel_with_the_cells():
    from dataclasses import replace

    from exact_joint import ExactJoint

    batch = replace(ExactJoint(length=2).batch(torch.zeros(6, 2, dtype=torch.long)), fold=torch.arange(6))
    assert batch.select(torch.tensor([4, 1])).fold.tolist() == [4, 1]
    assert [part.fold.tolist() for part in batch.split(4)] == [[0, 1, 2, 3], [4, 5]]
