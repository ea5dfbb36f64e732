"""Raw counts out of AnnData: wherever and however they are stored; anything else is told by file and place."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from shared_data import shared_file

import mdsc.data.anndata_counts as anndata_counts
from mdsc.data.anndata_counts import find_counts, open_counts, read_counts
from mdsc.errors import UserError

COUNTS = np.random.default_rng(0).poisson(0.7, (230, 30)).astype(np.float32)


def make(X=COUNTS, layers=None, raw=None):
    obs = pd.DataFrame({"drug": ["a", "b"] * 115}, index=[f"c{i}" for i in range(230)])
    var = pd.DataFrame(index=[f"G{i}" for i in range(30)])
    adata = anndata.AnnData(X, obs=obs, var=var, layers=layers)
    if raw is not None:
        adata.raw = anndata.AnnData(raw, obs=obs, var=pd.DataFrame(index=[f"R{i}" for i in range(raw.shape[1])]))
    return adata


def save(adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path


STORED = [
    pytest.param(COUNTS, id="dense"),
    pytest.param(COUNTS.astype(np.int64), id="dense-int64"),
    pytest.param(sp.csr_matrix(COUNTS), id="csr"),
    pytest.param(sp.csc_matrix(COUNTS), id="csc"),
    pytest.param(sp.csr_array(COUNTS.astype(np.uint16)), id="csr-array-uint16"),
    pytest.param(sp.csc_array(COUNTS.astype(np.int32)), id="csc-array-int32"),
]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("place", ["X", "counts", "raw"])
@pytest.mark.parametrize("on_disk", [pytest.param(False, id="memory"), pytest.param(True, id="file")])
def test_counts_are_read_from_anywhere(tmp_path, stored, place, on_disk):
    logs = np.log1p(COUNTS)
    adata = {
        "X": lambda: make(stored),
        "counts": lambda: make(logs, layers={"counts": stored}),
        "raw": lambda: make(logs, raw=stored),
    }[place]()
    cells = read_counts(save(adata, tmp_path) if on_disk else adata, None if place == "X" else place)
    assert cells.counts.dtype == np.int32
    assert cells.counts.has_canonical_format
    assert (cells.counts.data > 0).all()
    assert (cells.counts.toarray() == COUNTS).all()
    assert cells.obs["drug"].tolist()[:3] == ["a", "b", "a"]
    assert cells.var.index[3] == ("R3" if place == "raw" else "G3")


@pytest.mark.parametrize("stored", STORED)
def test_chunks_are_rows_in_order(tmp_path, stored, monkeypatch):
    # Several passes of a column-wise file, each cut in the middle of a gene.
    monkeypatch.setattr(anndata_counts, "PASS_ENTRIES", 997)
    monkeypatch.setattr(anndata_counts, "READ_ENTRIES", 101)
    with open_counts(save(make(stored), tmp_path)) as source:
        blocks = list(source.chunks(50))
    assert [block.shape[0] for block in blocks] == [50, 50, 50, 50, 30]
    assert (sp.vstack(blocks).toarray() == COUNTS).all()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("on_disk", [pytest.param(False, id="memory"), pytest.param(True, id="file")])
def test_chunks_may_begin_at_any_cell(tmp_path, stored, on_disk, monkeypatch):
    monkeypatch.setattr(anndata_counts, "PASS_ENTRIES", 900)  # of 3,500 in columns: several passes
    adata = make(stored)
    with open_counts(save(adata, tmp_path) if on_disk else adata) as source:
        for first in (0, 50, 75, 229, 230):
            chunks = [chunk.toarray() for chunk in source.chunks(25, first)]
            assert [len(chunk) for chunk in chunks[:-1]] == [25] * (len(chunks) - 1)
            assert np.array_equal(np.concatenate([np.zeros((0, 30)), *chunks]), COUNTS[first:])


def test_backed_anndata_and_stored_zeros(tmp_path):
    stored = sp.csr_matrix(COUNTS)
    stored.data[:5] = 0
    backed = anndata.read_h5ad(save(make(stored), tmp_path), backed="r")
    cells = read_counts(backed)
    backed.file.close()
    assert (cells.counts.data > 0).all()
    assert cells.counts.nnz == stored.nnz - 5


def test_empty_genes_and_cells_in_a_column_wise_file(tmp_path):
    stored = sp.csc_matrix(np.zeros((230, 30), np.float32))
    assert read_counts(save(make(stored), tmp_path)).counts.nnz == 0


LOGS = np.log1p(COUNTS / COUNTS.sum(1, keepdims=True) * 1e4)
NEGATIVE = COUNTS - 1
MISSING = np.where(COUNTS > 3, np.nan, COUNTS)
ONE_LATE = COUNTS.copy()
ONE_LATE[229, 29] = 0.5


@pytest.mark.parametrize(
    ("X", "layers", "layer", "told"),
    [
        pytest.param(LOGS, {"counts": COUNTS}, None, ["X holds values that are no int", "--layer counts"], id="logs"),
        pytest.param(sp.csc_matrix(LOGS), None, None, ["no integers", "Nothing else"], id="logs-csc"),
        pytest.param(NEGATIVE, None, None, ["negative values (", "that were read, e.g. -1)"], id="negative"),
        pytest.param(sp.csr_matrix(MISSING), None, None, ["NaN"], id="nan"),
        pytest.param(COUNTS * 1e10, None, None, ["beyond the range"], id="too-large"),
        pytest.param(COUNTS, {"scaled": LOGS}, "scaled", ["layer 'scaled' holds", "Counts are in X"], id="wrong-layer"),
        pytest.param(COUNTS, {"scaled": LOGS}, "counts", ["no layer 'counts'", "it has X, scaled"], id="no-layer"),
        pytest.param(COUNTS, None, "raw", ["no raw (--layer)", "it has X"], id="no-raw"),
        pytest.param(None, None, None, ["no X (--layer)", "it has nothing"], id="no-x"),
    ],
)
@pytest.mark.parametrize("on_disk", [pytest.param(False, id="memory"), pytest.param(True, id="file")])
def test_what_is_no_counts_is_told(tmp_path, X, layers, layer, told, on_disk):
    adata = make(X, layers)
    with pytest.raises(UserError) as error:
        read_counts(save(adata, tmp_path) if on_disk else adata, layer, "cells.h5ad")
    assert "cells.h5ad" in str(error.value)
    assert str(error.value).count("\n") <= 1
    for part in told:
        assert part in str(error.value)


def test_a_late_fraction_is_found_while_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(anndata_counts, "SAMPLE_ENTRIES", 100)
    with pytest.raises(
        UserError, match=r"X holds values that are no integers \(1 of [\d,]+ that were read, e\.g\. 0"
    ) as error:
        read_counts(save(make(sp.csr_matrix(ONE_LATE)), tmp_path))
    assert "Nothing else in the file holds counts" in str(error.value), "not X, which failed"


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("sampled", [100, 10**6])
def test_the_first_wrong_value_is_named(tmp_path, monkeypatch, kind, on_disk, sampled):
    monkeypatch.setattr(anndata_counts, "SAMPLE_ENTRIES", sampled)
    values = COUNTS.astype(float)
    values[200, 7] = values[201, 2] = 0.5
    adata = make(kind(values))
    adata.var_names = [f"G{number}" for number in range(adata.n_vars)]
    adata.obs_names = [f"c{number}" for number in range(adata.n_obs)]
    with pytest.raises(UserError, match="no integers") as error:
        read_counts(save(adata, tmp_path) if on_disk else adata)
    if not (on_disk and kind is sp.csc_matrix and sampled > 100):
        assert ", first in cell 'c200', gene 'G7', not raw counts" in str(error.value)


def test_raw_that_holds_counts_is_pointed_to():
    adata = make(LOGS, raw=COUNTS)
    assert find_counts(adata) == {"X": find_counts(adata)["X"], "raw": ""}
    with pytest.raises(UserError, match="Counts are in raw: give --layer raw"):
        read_counts(adata)


def test_empty_and_ambiguous_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"has no cells or no genes \(0 cells x 30 genes\)"):
        read_counts(make()[:0])
    with pytest.raises(UserError, match=r"\(230 cells x 0 genes\)"):
        read_counts(make()[:, :0])
    twice = make()
    twice.var_names = ["G0", "G1", "G0", "G1", *twice.var_names[4:]]
    with pytest.raises(UserError, match=r"cells\.h5ad has several columns for the same gene: G0, G1"):
        read_counts(twice, name="cells.h5ad")
    with pytest.raises(UserError, match="there is no file"):
        read_counts(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("no hdf5")
    with pytest.raises(UserError, match=r"text\.h5ad is no h5ad file"):
        read_counts(tmp_path / "text.h5ad")
    whole = save(make(sp.csr_matrix(COUNTS)), tmp_path).read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.h5ad is no h5ad file, or damaged"):
        read_counts(tmp_path / "cut.h5ad")


@pytest.mark.parametrize("stored", [{"X": [1]}, {"obs": [1], "var": [1]}, {"obs/a": [1], "var/b": [2]}, {}])
@pytest.mark.parametrize("attrs", [{}, {"encoding-type": "anndata"}])
def test_hdf5_that_is_no_anndata_is_told(tmp_path, stored, attrs):
    path = tmp_path / "other.h5ad"
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        for name, values in stored.items():
            file[name] = values
    with pytest.raises(UserError, match=r"other\.h5ad (is no h5ad file|has no )"):
        read_counts(path)
    with pytest.raises(UserError, match="is a folder: give an h5ad file"):
        read_counts(tmp_path)


def test_a_file_without_the_right_to_read_it_is_told(tmp_path, monkeypatch):
    path = save(make(sp.csr_matrix(COUNTS)), tmp_path)
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"\.h5ad cannot be read: Permission denied"):
        read_counts(path)


@pytest.mark.parametrize(
    ("file", "shape"),
    [
        pytest.param("adamson2016_pilot.h5ad", (360, 1000), id="adamson-csc"),
        pytest.param("kang2018_donors.h5ad", (8684, 2511), id="kang-csr"),
    ],
)
def test_real_files(file, shape):
    path = shared_file(file)
    cells = read_counts(path)
    assert cells.counts.shape == shape
    whole = anndata.read_h5ad(path).X
    assert abs(cells.counts - whole.tocsr()).max() == 0
