"""Both forms of the checks of a row group find the same faults and give the same entries."""

import numpy as np
import pytest

from mdsc.data.row_checks import BAD_COUNT, BAD_GENE, REPEATED, checked_entries

INDEX = np.array([-1, -1, -1, 0, 1, -1, 2, 3], dtype=np.int32)  # id 5 is no gene of the vocabulary
CLS = (1, -2.0)


@pytest.fixture(params=["numpy", "numba"])
def form(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("MDSC_NUMBA", "0" if request.param == "numpy" else "1")


def check(*cells):
    genes = np.array([gene for cell in cells for gene, _ in cell], dtype=np.int64)
    values = np.array([value for cell in cells for _, value in cell], dtype=np.float32)
    return checked_entries(genes, values, np.cumsum([0] + [len(cell) for cell in cells]), INDEX)


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([[CLS, (3, 1), (7, 5)], [CLS], [CLS, (4, 2)]], id="CLS opens each cell"),
        pytest.param([[(3, 1), (7, 5)], [], [(4, 2)]], id="no CLS, an empty cell"),
        pytest.param([[(3, 1), CLS, (7, 5)], [], [(4, 2), (0, 0)]], id="special entries anywhere"),
        pytest.param([[CLS, CLS, (3, 1), (7, 5)], [], [(4, 2)]], id="two in one cell"),
    ],
)
def test_entries_without_special_ones(form, cells):
    counts, gene_index, indptr = check(*cells)
    assert counts.tolist() == [1, 5, 2]
    assert gene_index.tolist() == [0, 3, 1]
    assert indptr.tolist() == [0, 2, 2, 3]
    assert (counts.dtype, gene_index.dtype, indptr.dtype) == (np.int32, np.int32, np.int64)


def test_order_within_a_cell_is_kept(form):
    counts, gene_index, _ = check([CLS, (7, 1), (3, 2)])
    assert (counts.tolist(), gene_index.tolist()) == ([1, 2], [3, 0])


@pytest.mark.parametrize("value", [0, -1, 1.5, np.nan, np.inf, 2.0**31, 0.999])
def test_counts_are_positive_integers(form, value):
    assert check([CLS, (3, 1)], [(4, value)]) == BAD_COUNT


@pytest.mark.parametrize("gene", [5, 8, 2**40])
def test_genes_are_known(form, gene):
    assert check([CLS, (3, 1)], [(gene, 1)]) == BAD_GENE


def test_a_gene_comes_once_in_a_cell(form):
    assert check([(3, 1), (3, 1)]) == REPEATED
    assert check([(3, 1), (4, 1), (3, 1)]) == REPEATED
    assert not isinstance(check([(3, 1)], [(3, 1)]), str)


def test_no_cells(form):
    counts, gene_index, indptr = check()
    assert (len(counts), len(gene_index), indptr.tolist()) == (0, 0, [0])
