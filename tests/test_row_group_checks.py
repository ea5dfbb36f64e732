"""The compiled and the plain form of the checks of a row group find the same faults and give the same entries."""

from inspect import unwrap

import numpy as np
import pyarrow as pa
import pytest

from mdsc.data import row_group_checks
from mdsc.data.row_group_checks import cell_entries
from mdsc.data.shard_file import DamagedFile

INDEX = np.array([-1, -1, -1, 0, 1, -1, 2, 3], dtype=np.int32)  # id 5 is no gene of the vocabulary
CLS = (1, -2.0)


@pytest.fixture(params=["numpy", "numba", "python"])
def form(request, monkeypatch):
    """With or without numba; or its loop as Python runs it, which checks what numba does not: each index."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("MDSC_NUMBA", "0" if request.param == "numpy" else "1")
    if request.param == "python":
        monkeypatch.setattr(row_group_checks, "compiled", unwrap)


# No id is left out, as in a vocabulary of ours: places are ids less a number.
NO_GAP = np.array([-1, -1, -1, 0, 1, 2, 3, 4], dtype=np.int32)
PUBLISHED, COMPACT = (pa.int64(), pa.float32()), (pa.int32(), pa.uint16())


def entries(*cells, types=PUBLISHED, index=INDEX):
    genes, values = ([[entry[place] for entry in cell] for cell in cells] for place in (0, 1))
    columns = {"genes": pa.array(genes, pa.list_(types[0])), "expressions": pa.array(values, pa.list_(types[1]))}
    return cell_entries(pa.table(columns), index)


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([[CLS, (3, 1), (7, 5)], [CLS], [CLS, (4, 2)]], id="CLS opens each cell"),
        pytest.param([[(3, 1), (7, 5)], [], [(4, 2)]], id="no CLS, an empty cell"),
        pytest.param([[CLS, (3, 1), (7, 5)], [], [(4, 2)]], id="CLS in one cell"),
    ],
)
def test_entries_without_cls(form, cells):
    counts, gene_index, indptr = entries(*cells)
    assert counts.tolist() == [1, 5, 2]
    assert gene_index.tolist() == [0, 3, 1]
    assert indptr.tolist() == [0, 2, 2, 3]
    assert (counts.dtype, gene_index.dtype, indptr.dtype) == (np.int32, np.int32, np.int64)


def test_empty_cells_at_both_ends(form):
    counts, gene_index, indptr = entries([], [CLS, (3, 1)], [])
    assert (counts.tolist(), gene_index.tolist(), indptr.tolist()) == ([1], [0], [0, 0, 1, 1])


def test_types_of_compact_shards(form):
    counts, gene_index, indptr = entries([(3, 1), (7, 65535)], [(6, 2)], types=COMPACT)
    assert (counts.tolist(), gene_index.tolist(), indptr.tolist()) == ([1, 65535, 2], [0, 3, 2], [0, 2, 3])


def test_places_are_the_tables(form):
    cells = [CLS, (3, 1), (4, 1), (6, 1), (7, 1)], [(7, 1)]
    assert entries(*cells)[1].tolist() == [0, 1, 2, 3, 3]
    assert entries(*cells, index=NO_GAP)[1].tolist() == [0, 1, 3, 4, 4]
    assert entries(cells[1], types=COMPACT, index=NO_GAP)[1].tolist() == [4]


def test_order_within_a_cell_is_kept(form):
    counts, gene_index, _ = entries([CLS, (7, 1), (3, 2)])
    assert (counts.tolist(), gene_index.tolist()) == ([1, 2], [3, 0])


@pytest.mark.parametrize("value", [0, -1, 1.5, np.nan, np.inf, -np.inf, 2.0**31, 0.999])
def test_counts_are_positive_integers(form, value):
    with pytest.raises(DamagedFile, match="positive integers"):
        entries([CLS, (3, 1)], [(4, value)])


@pytest.mark.parametrize("gene", [5, 8, 2**40, -1, -5, 0, 1, 2])
@pytest.mark.parametrize("index", [INDEX, NO_GAP], ids=["a gap", "no gap"])
def test_genes_are_known(form, gene, index):
    cells = [CLS, (3, 1)], [(gene, 1), (3, 1)]
    if gene == 5 and index is NO_GAP:
        assert entries(*cells, index=index)[1].tolist() == [0, 2, 0]
        return
    with pytest.raises(DamagedFile, match=r"column genes: (an )?id"):
        entries(*cells, index=index)


@pytest.mark.parametrize("cells", [[[(3, 1), CLS]], [[CLS, CLS, (3, 1)]], [[(1, -1), (3, 1)]], [[(2, -2), (3, 1)]]])
def test_only_cls_at_the_start_of_a_cell_is_dropped(form, cells):
    with pytest.raises(DamagedFile):
        entries(*cells)


@pytest.mark.parametrize("cell", [[(3, 1), (3, 1)], [(3, 1), (4, 1), (3, 1)], [(4, 1), (3, 1), (4, 1)]])
def test_a_gene_comes_once_in_a_cell(form, cell):
    with pytest.raises(DamagedFile, match="twice"):
        entries([(7, 1)], cell)
    with pytest.raises(DamagedFile, match="twice"):
        entries([], cell, [])
    assert len(entries([(3, 1)], [(3, 1)])[0]) == 2


def test_a_vocabulary_without_genes_knows_none(form):
    none = np.zeros(0, dtype=np.int32)
    assert entries([CLS], [], index=none)[2].tolist() == [0, 0, 0]
    with pytest.raises(DamagedFile, match=r"not in genes\.parquet"):
        entries([(3, 1)], index=none)


@pytest.mark.parametrize("index", [INDEX, NO_GAP], ids=["a gap", "no gap"])
def test_what_is_plain_takes_no_second_look(monkeypatch, index):
    """The compiled pass is the whole of the check: else it would be lost work, and nobody would notice."""
    pytest.importorskip("numba")
    monkeypatch.setenv("MDSC_NUMBA", "1")
    monkeypatch.delattr(row_group_checks, "_drop_special")
    cells = [CLS, (3, 1), (7, 2.0**31 - 128)], [], [CLS], [(4, 1)]  # the largest count of 32 bits that float32 has
    assert entries(*cells, index=index)[0].tolist() == [1, 2**31 - 128, 1]
    assert entries([(3, 1), (7, 65535)], types=COMPACT, index=index)[0].tolist() == [1, 65535]
