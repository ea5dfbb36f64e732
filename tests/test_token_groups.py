"""Row groups packed into numbers give back genes, counts and tokens, in either width, compiled or not."""

from inspect import unwrap

import numpy as np
import pytest

from mdsc.data import dense_cells, token_groups
from mdsc.data.dense_cells import DenseCells
from mdsc.data.quarantine import TrainingCells
from mdsc.data.row_groups import RowGroup
from mdsc.data.token_groups import NARROW, WIDE, entries_of, tokenise
from mdsc.data.tokenizers import make_tokenizer

COUNTS = np.array([1, 255, 256, 3, 65535, 65536, 2**31 - 1, 2], dtype=np.int32)
INDPTR = np.array([0, 3, 3, 7, 8])


@pytest.fixture(params=["numpy", "numba", "python"], autouse=True)
def form(request, monkeypatch):
    """With or without numba; or its loops as Python runs them, which checks what numba does not: each index."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("MDSC_NUMBA", "0" if request.param == "numpy" else "1")
    if request.param == "python":
        monkeypatch.setattr(token_groups, "compiled", unwrap)
        monkeypatch.setattr(dense_cells, "compiled", unwrap)


def group_of(counts: np.ndarray, indptr: np.ndarray, genes: list[int], vocabulary_size: int, num_tokens: int = 64):
    rows = len(indptr) - 1
    cells = RowGroup(counts, np.array(genes, dtype=np.int32), indptr, np.empty(0, dtype=object), {})
    tokenizer = make_tokenizer("count", num_tokens)
    group = tokenise(TrainingCells(cells, np.zeros(rows, dtype=np.int64)), tokenizer, {}, vocabulary_size)
    return group, tokenizer.encode(counts, indptr)


@pytest.mark.parametrize(
    ("vocabulary_size", "num_tokens", "kind"),
    [(65536, 256, NARROW), (65537, 64, WIDE), (100, 257, WIDE), (2**20, 4096, WIDE)],
)
def test_entries_are_what_was_packed(vocabulary_size, num_tokens, kind):
    genes = [0, 5, vocabulary_size - 1, 1, 2, 7, 9, vocabulary_size - 1]
    group, tokens = group_of(COUNTS, INDPTR, genes, vocabulary_size, num_tokens)
    assert group.entries.dtype == kind
    cells = entries_of([group] * 4, [0, 1, 2, 3])
    assert cells.gene_index.tolist() == genes
    assert cells.counts.tolist() == COUNTS.tolist()
    assert cells.tokens.tolist() == tokens.tolist()
    assert cells.indptr.tolist() == INDPTR.tolist()
    assert entries_of([group, group], [3, 0]).counts.tolist() == [2, 1, 255, 256]


@pytest.mark.parametrize("vocabulary_size", [50, 70_000])
def test_cells_of_several_groups_fill_a_gene_set(vocabulary_size):
    genes = [0, 5, 40, 1, 2, 7, 9, 40]
    group, tokens = group_of(COUNTS, INDPTR, genes, vocabulary_size)
    small, small_tokens = group_of(np.array([4, 4], dtype=np.int32), np.array([0, 2]), [7, 8], vocabulary_size)
    gene_set = np.array([2, 5, 7, 9, 40])
    dense = DenseCells.empty(
        (1, 4, 6), shared_genes=True, count_type=group.count_type, pad_token=65, columns=()
    )  # one gene more than is filled
    dense.fill_gene_set(0, [group, small, group, group], [2, 0, 1, 0], gene_set, vocabulary_size)
    assert dense.gene_ids[0, 0, :5].tolist() == gene_set.tolist()
    assert dense.counts[0].tolist() == [
        [65535, 0, 65536, 2**31 - 1, 0, 0],
        [0, 0, 4, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 255, 0, 0, 256, 0],
    ]
    assert dense.tokens[0].tolist() == [
        [tokens[4], 0, tokens[5], tokens[6], 0, 65],
        [0, 0, small_tokens[0], 0, 0, 65],
        [0, 0, 0, 0, 0, 65],
        [0, tokens[1], 0, 0, tokens[2], 65],
    ]


def test_no_entries_at_all():
    group, _ = group_of(np.zeros(0, dtype=np.int32), np.array([0, 0]), [], 50)
    dense = DenseCells.empty((1, 1, 2), shared_genes=True, count_type=group.count_type, pad_token=65, columns=())
    dense.fill_gene_set(0, [group], [0], np.array([3, 4]), 50)
    assert not dense.counts.any()
    assert not dense.tokens.any()


@pytest.mark.parametrize(("vocabulary_size", "large"), [(50, 256), (70_000, 65536)])
@pytest.mark.parametrize("place", range(4))
def test_a_count_that_just_has_no_room_stands_anywhere(vocabulary_size, large, place):
    counts = np.ones(4, dtype=np.int32)
    counts[place] = large
    group, _ = group_of(counts, np.array([0, 2, 4]), [0, 1, 0, 1], vocabulary_size)
    assert entries_of([group, group], [0, 1]).counts.tolist() == counts.tolist()
    dense = DenseCells.empty((1, 2, 2), shared_genes=True, count_type=group.count_type, pad_token=65, columns=())
    dense.fill_gene_set(0, [group, group], [0, 1], np.array([0, 1]), vocabulary_size)
    assert dense.counts.ravel().tolist() == counts.tolist()


@pytest.mark.parametrize("width", [255, 256, 257])
@pytest.mark.parametrize("vocabulary_size", [600, 70_000])
def test_gene_sets_of_widths_around_a_byte(vocabulary_size, width):
    counts = np.arange(1, 601, dtype=np.int32)
    group, tokens = group_of(counts, np.array([0, 600]), list(range(600)), vocabulary_size)
    gene_set = np.arange(0, 2 * width, 2)
    dense = DenseCells.empty((1, 1, width), shared_genes=True, count_type=group.count_type, pad_token=65, columns=())
    dense.fill_gene_set(0, [group], [0], gene_set, vocabulary_size)
    assert dense.counts.ravel().tolist() == counts[gene_set].tolist()
    assert dense.tokens.ravel().tolist() == tokens[gene_set].tolist()
    assert dense.num_real.tolist() == [[width]]


@pytest.mark.parametrize("pad_token", [65, 255, 256, 4097])
def test_what_is_not_filled_is_pad(pad_token):
    dense = DenseCells.empty((1, 2, 3), shared_genes=True, count_type=np.dtype("u1"), pad_token=pad_token, columns=())
    assert (dense.tokens == pad_token).all()
