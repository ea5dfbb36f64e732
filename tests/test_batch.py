"""CellBatch, and the same made from a matrix in memory."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from simulated_shards import simulated_counts

from mdsc.data.batch import CellBatch, batch_from_csr
from mdsc.data.dense_cells import DenseCells, joined
from mdsc.data.tokenizers import make_tokenizer


@pytest.fixture
def batch() -> CellBatch:
    return batch_from_csr(
        simulated_counts(11, 20),
        np.arange(20),
        make_tokenizer("rank"),
        categories={"drug": np.arange(11)},
        vectors={"target": np.arange(22.0).reshape(11, 2)},
    )


def test_split_and_select_keep_every_field_together(batch):
    parts = batch.split(4)
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.cat([part.tokens for part in parts]).equal(batch.tokens)
    assert parts[1].cell_index.tolist() == [4, 5, 6, 7]
    assert parts[1].categories["drug"].tolist() == [4, 5, 6, 7]
    chosen = batch.select(torch.tensor([9, 2]))
    assert chosen.vectors["target"].tolist() == [[18, 19], [4, 5]]
    assert chosen.counts.equal(batch.counts[[9, 2]])
    assert chosen.is_pad.shape == (2, 20)


def test_to_moves_every_field(batch):
    moved = batch.to("meta")
    tensors = [moved.gene_ids, moved.counts, moved.tokens, moved.is_pad, moved.cell_index]
    tensors += [*moved.categories.values(), *moved.vectors.values()]
    assert all(tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize("name", ["rank", "quantile", "count"])
def test_batch_from_csr_is_the_dense_matrix(name):
    counts, tokenizer = simulated_counts(30, 50), make_tokenizer(name)
    gene_index = np.random.default_rng(0).permutation(80)[:50]
    batch = batch_from_csr(counts, gene_index, tokenizer, first_cell=7)
    dense = torch.from_numpy(counts.toarray())
    assert batch.counts.equal(dense)
    assert batch.tokens.equal(tokenizer.encode_visible(dense, torch.ones_like(dense, dtype=torch.bool)))
    assert (batch.gene_ids == torch.from_numpy(gene_index)).all()
    assert batch.cell_index.tolist() == list(range(7, 37))
    assert not batch.is_pad.any()

    rows = batch_from_csr(counts[[3, 8]], gene_index, tokenizer)
    assert rows.tokens.equal(batch.tokens[[3, 8]])


def test_stored_zeros_are_zeros():
    counts = csr_matrix((np.array([0.0, 3.0, 7.0]), np.array([0, 1, 2]), np.array([0, 3, 3])), shape=(2, 4))
    before = counts.data.copy()
    batch = batch_from_csr(counts, np.arange(4), make_tokenizer("rank"))
    assert batch.tokens.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(counts.data, before)


def part_of(lanes: range, kind: str, *, shared: bool) -> DenseCells:
    """Two cells of three genes of each lane; each number tells the lane that it is of."""
    of_lane = np.array(lanes)[:, None]
    cells = np.zeros((1, 2), dtype=np.int64) + of_lane
    genes = np.zeros((1, 2, 3), dtype=kind) + of_lane[:, :, None].astype(kind)
    return DenseCells(
        gene_ids=genes[:, :1].astype(np.int32) if shared else genes.astype(np.int32),
        counts=genes + np.arange(2, dtype=kind)[:, None],
        tokens=genes.astype(np.uint8),
        num_real=3 - cells % 2,
        cell_index=2 * cells + np.arange(2),
        fold=cells.astype(np.int8),
        categories={"drug": cells.astype(np.int32)},
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kinds", [["u1"], ["i4"], ["u1", "i4"], ["i4", "u1", "u1"]])
def test_parts_are_joined_in_the_order_of_their_lanes(shared, kinds):
    parts = [part_of(range(5)[number :: len(kinds)], kind, shared=shared) for number, kind in enumerate(kinds)]
    batch = joined(parts)
    lane = torch.arange(10) // 2
    assert batch.cell_index.tolist() == list(range(10))
    assert batch.gene_ids.tolist() == batch.tokens.tolist() == lane[:, None].expand(10, 3).tolist()
    assert batch.counts.tolist() == (lane + torch.arange(10) % 2)[:, None].expand(10, 3).tolist()
    assert batch.is_pad.tolist() == [[False, False, place % 2 == 1] for place in lane.tolist()]
    assert batch.fold.tolist() == batch.categories["drug"].tolist() == lane.tolist()
    kinds_of_batch = (batch.gene_ids.dtype, batch.counts.dtype, batch.tokens.dtype, batch.fold.dtype)
    assert kinds_of_batch == (torch.int32, torch.int32, torch.uint8, torch.int64)
    wide = batch.widened()
    assert (wide.gene_ids.dtype, wide.counts.dtype, wide.tokens.dtype) == (torch.int64, torch.int32, torch.int64)
