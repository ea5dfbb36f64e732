"""Statistics of the training cells against plain numpy on the whole matrix."""

from dataclasses import fields

import numpy as np
import pytest
from simulated_shards import simulated_counts, write_shards

from mdsc.data import shard_statistics as module
from mdsc.data.shard_statistics import shard_statistics
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.data.validation_split import split_rows

NUM_CELLS, NUM_GENES, CELLS_PER_SHARD, FRACTION = 500, 90, 120, 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ShardFolder:
    counts = simulated_counts(NUM_CELLS, NUM_GENES, mean=2.0)
    return write_shards(tmp_path_factory.mktemp("cells") / "shards", counts, cells_per_shard=CELLS_PER_SHARD)


@pytest.fixture(scope="module")
def training_counts(folder) -> np.ndarray:
    counts = simulated_counts(NUM_CELLS, NUM_GENES, mean=2.0).toarray()
    refs = folder.row_groups("train")
    rows = [split_rows(ref, FRACTION)[0] + CELLS_PER_SHARD * number for number, ref in enumerate(refs)]
    return counts[np.concatenate(rows)]


def run(folder, **options):
    options = {"rank": 8, "validation_fraction": FRACTION} | options
    return shard_statistics(folder, make_tokenizer("rank"), **options)


@pytest.mark.parametrize("name", ["rank", "quantile", "count"])
def test_token_frequencies_and_values(folder, training_counts, name):
    tokenizer = make_tokenizer(name)
    found = shard_statistics(folder, tokenizer, rank=2, validation_fraction=FRACTION)
    tokens = np.zeros_like(training_counts, dtype=np.int64)
    for row, counts in enumerate(training_counts):
        nonzero = counts > 0
        tokens[row, nonzero] = tokenizer.encode(counts[nonzero], np.array([0, nonzero.sum()]))
    frequency = np.stack([(tokens == token).sum(axis=0) for token in range(tokenizer.num_tokens)], axis=1)
    np.testing.assert_array_equal(found.token_frequency, frequency)
    assert found.num_cells == len(training_counts) == found.token_frequency.sum(axis=1).max()
    for token in range(tokenizer.num_tokens):
        of_token = training_counts[tokens == token]
        expected = of_token.mean() if len(of_token) else np.nan
        np.testing.assert_allclose(found.token_mean_count[token], expected)
    assert (np.diff(tokenizer.with_values(found.token_mean_count).values) > 0).all()


def test_moments(folder, training_counts):
    found, values = run(folder).factors, np.log1p(training_counts)
    np.testing.assert_allclose(found.gene_mean, values.mean(axis=0))
    np.testing.assert_allclose(found.gene_sd, values.std(axis=0))
    np.testing.assert_allclose(run(folder).mean_count, training_counts.mean(axis=0))


def test_gene_vectors_are_those_of_the_exact_decomposition(folder, training_counts):
    values = np.log1p(training_counts)
    _, singular, right = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    found = run(folder).factors.gene_vectors
    lengths = np.linalg.norm(found, axis=0)
    exact = singular[:8] / np.sqrt(len(values))
    # Two directions stand out; the others are noise of nearly equal lengths, in which the planes mix.
    np.testing.assert_allclose(lengths, exact, rtol=0.03)
    np.testing.assert_allclose(lengths[:2], exact[:2], rtol=1e-3)
    assert abs(found[:, 0] / lengths[0] @ right[0]) > 1 - 1e-5
    captured = ((values - values.mean(axis=0)) @ (found / lengths)).var(axis=0).sum()
    assert captured > 0.98 * (exact**2).sum()


def test_full_rank_is_exact(folder, training_counts):
    """With as many vectors as genes nothing is approximated; further columns are zero."""
    values = np.log1p(training_counts)
    vectors = run(folder, rank=NUM_GENES + 3).factors.gene_vectors
    assert vectors.shape == (NUM_GENES, NUM_GENES + 3)
    assert (vectors[:, NUM_GENES:] == 0).all()
    np.testing.assert_allclose(vectors @ vectors.T, np.cov(values.T, bias=True), atol=1e-9)


def test_equal_for_the_same_seed_only(folder):
    first, again, other = run(folder).factors, run(folder).factors, run(folder, seed=1).factors
    for entry in fields(first):
        np.testing.assert_array_equal(getattr(first, entry.name), getattr(again, entry.name))
    assert (other.gene_vectors != first.gene_vectors).any()
    np.testing.assert_allclose(other.gene_vectors[:, 0], first.gene_vectors[:, 0], atol=5e-3)


def test_the_largest_entry_of_each_vector_is_positive(folder):
    """A rule for the signs, which would else hang on the linear algebra library."""
    vectors = run(folder, rank=20).factors.gene_vectors
    assert (vectors.max(axis=0) == np.abs(vectors).max(axis=0)).all()


def test_a_row_group_is_read_however_few_cells_are_asked_for(folder):
    assert run(folder, max_cells=1, cross_fit=False).num_cells > 1


def test_few_cells_are_taken_evenly(folder, monkeypatch):
    read, files = ShardFolder.read, []
    monkeypatch.setattr(
        ShardFolder,
        "read",
        lambda self, ref, columns, **options: files.append(ref.file) or read(self, ref, columns, **options),
    )
    found = run(folder, max_cells=200, cross_fit=False)
    assert sorted(set(files)) == ["train-00001.parquet", "train-00003.parquet"]
    assert files == sorted(set(files)) * (2 + module.NUM_PRODUCTS)
    assert found.num_cells == 192
    assert (found.token_frequency.sum(axis=1) == 192).all()
