"""Raw counts out of an AnnData or an h5ad file, checked: from X, a layer or raw; CSR, CSC or dense; whole or in chunks.

A file is read a chunk at a time at constant memory. A CSC file is read in as many passes as its entries need.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsc.data.count_faults import described, fault_of, is_wrong, where_counts_are
from mdsc.data.genes import refuse_duplicates
from mdsc.data.row_group_checks import first_line
from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

CHUNK_ROWS = 1000
# Stored entries looked at before all are read, and held at once of a CSC file.
SAMPLE_ENTRIES = 1_000_000
PASS_ENTRIES = 30_000_000
READ_ENTRIES = 2_000_000


@dataclass(frozen=True, eq=False)
class CellCounts:
    """Cells of one source in memory."""

    counts: "sp.csr_matrix"
    """(cells, genes) int32, without stored zeros."""
    obs: "pd.DataFrame"
    var: "pd.DataFrame"


@dataclass(frozen=True, eq=False)
class CountSource:
    """An opened AnnData whose counts have not been read."""

    name: str
    """The file, as messages name it."""
    location: str
    """Where the counts are: "X", "raw" or the name of a layer."""
    matrix: Any
    obs: "pd.DataFrame"
    """The columns that were asked for."""
    var: "pd.DataFrame"
    obs_columns: tuple[str, ...]
    """Names of all columns that the file has."""
    elsewhere: str
    """What to tell a user if these are no counts: where there are some."""

    def chunks(self, rows: int = CHUNK_ROWS, first: int = 0) -> Iterator["sp.csr_matrix"]:
        """The cells from `first` on in order, `rows` at a time, as int32 CSR without stored zeros."""
        blocks, start = _row_blocks(self.matrix, rows, first), first
        while True:
            try:
                block = next(blocks, None)
            except OSError as error:
                raise _damaged(self.name, error) from error
            if block is None:
                return
            if fault := fault_of(block.data):
                raise self.no_counts(fault, self._first_wrong(block, start))
            start += block.shape[0]
            yield _as_int32(block)

    def read(self) -> CellCounts:
        import scipy.sparse as sp

        counts = sp.vstack(list(self.chunks()), format="csr")
        return CellCounts(counts, self.obs, self.var)

    def no_counts(self, fault: str, where: str = "") -> UserError:
        place = described(self.location)
        return UserError(f"{self.name}: {place} holds {fault}{where}, not raw counts.\n{self.elsewhere}")

    def _first_wrong(self, block: "sp.csr_matrix", start: int) -> str:
        """The cell and gene of the first wrong value of a block of cells, of which `start` come before."""
        first = int(np.argmax(is_wrong(block.data)))
        cell = start + int(np.searchsorted(block.indptr, first, side="right")) - 1
        return f", first in cell {self.obs.index[cell]!r}, gene {self.var.index[block.indices[first]]!r}"

    def where_wrong(self) -> str:
        """The same of all cells; "" where it would take a pass over a file of columns."""
        if getattr(self.matrix, "attrs", {}).get("encoding-type") == "csc_matrix":
            return ""
        start = 0
        for block in _row_blocks(self.matrix, CHUNK_ROWS):
            if block.data.dtype.kind in "if" and is_wrong(block.data).any():
                return self._first_wrong(block, start)
            start += block.shape[0]
        return ""


def read_counts(source: "AnnData | str | Path", layer: str | None = None, name: str = "the AnnData") -> CellCounts:
    """All raw counts of an AnnData or an h5ad file; see `open_counts`."""
    with open_counts(source, layer, name) as opened:
        return opened.read()


@contextmanager
def open_counts(
    source: "AnnData | str | Path",
    layer: str | None = None,
    name: str = "the AnnData",
    *,
    obs_columns: Sequence[str] | None = None,
    unique_genes: bool = True,
) -> Iterator[CountSource]:
    """Open the counts in X, or in `layer`: the name of a layer, or "raw" for adata.raw.

    Of obs, `obs_columns` are read (those that the file lacks are left out; None: all). Two genes of one name are an
    error unless the caller takes care of them (`unique_genes=False`).

    A `UserError` names the file if it cannot be read, has no cells, two genes of one name, no such layer, or values
    there that are no counts; in that case it tells where counts are.
    """
    with ExitStack() as stack:
        name, matrices, obs, vars_, all_columns = stack.enter_context(_opened(source, name, obs_columns))
        location = layer or "X"
        if location not in matrices:
            raise UserError(f"{name} has no {described(location)} (--layer): it has {', '.join(matrices) or 'nothing'}")
        var, matrix = vars_[location], matrices[location]
        if 0 in (len(obs), len(var)):
            raise UserError(f"{name} has no cells or no genes ({len(obs)} cells x {len(var)} genes)")
        if unique_genes:
            refuse_duplicates(var.index.astype(str).tolist(), name)
        faults = _faults(matrices, name)
        opened = CountSource(name, location, matrix, obs, var, all_columns, where_counts_are(faults, location))
        if fault := faults[location]:
            raise opened.no_counts(fault, opened.where_wrong())
        yield opened


def find_counts(source: "AnnData | str | Path") -> dict[str, str]:
    """For X, raw and every layer: "" if its first entries are counts, else what they are instead."""
    with _opened(source, "the AnnData", ()) as (name, matrices, *_):
        return _faults(matrices, name)


def _faults(matrices: dict, name: str) -> dict[str, str]:
    try:
        return {place: fault_of(_sample(values)) for place, values in matrices.items()}
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(f"{name} is damaged ({first_line(error)}): copy it again")


@contextmanager
def _opened(
    source: "AnnData | str | Path", name: str, columns: Sequence[str] | None
) -> Iterator[tuple[str, dict, "pd.DataFrame", dict, tuple[str, ...]]]:
    """Name, matrices by location, obs with these columns, var by location, and the names of all columns of obs."""
    import anndata

    if isinstance(source, anndata.AnnData):
        yield name, *_of_memory(source.to_memory() if source.isbacked else source, columns)
        return
    import h5py

    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path} is a folder: give an h5ad file" if path.is_dir() else f"there is no file {path}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(path, "r"))
            is_old = "encoding-type" not in file.attrs  # written by an anndata of before 2021
            contents = _of_memory(anndata.read_h5ad(path), columns) if is_old else _of_file(file, columns)
        except MemoryError:
            raise
        except Exception as error:  # anndata's readers have kinds of their own
            raise UserError(f"{path} is no h5ad file, or damaged ({first_line(error)})") from error
        yield str(path), *contents


def _of_file(file, columns: Sequence[str] | None) -> tuple[dict, "pd.DataFrame", dict, tuple[str, ...]]:
    import pandas as pd
    from anndata.io import read_elem

    stored, var = file["obs"], read_elem(file["var"])
    all_columns, key = tuple(map(str, stored.attrs["column-order"])), stored.attrs["_index"]
    wanted = all_columns if columns is None else [name for name in columns if name in all_columns]
    index = pd.Index(read_elem(stored[key]), name=None if key == "_index" else key)
    obs = pd.DataFrame({name: read_elem(stored[name]) for name in wanted}, index=index)
    matrices = {"X": file["X"]} if "X" in file else {}
    vars_ = dict.fromkeys(["X", *file.get("layers", ())], var)
    matrices |= dict(file.get("layers", {}))
    if "raw" in file:
        matrices["raw"], vars_["raw"] = file["raw/X"], read_elem(file["raw/var"])
    return matrices, obs, vars_, all_columns


def _of_memory(adata: "AnnData", columns: Sequence[str] | None) -> tuple[dict, "pd.DataFrame", dict, tuple[str, ...]]:
    matrices = {} if adata.X is None else {"X": adata.X}
    matrices |= dict(adata.layers)
    vars_ = dict.fromkeys(matrices, adata.var)
    if adata.raw is not None:
        matrices["raw"], vars_["raw"] = adata.raw.X, adata.raw.var
    all_columns = tuple(map(str, adata.obs.columns))
    obs = adata.obs if columns is None else adata.obs[[name for name in columns if name in all_columns]]
    return matrices, obs, vars_, all_columns


def _sample(matrix) -> np.ndarray:
    import h5py
    import scipy.sparse as sp

    if isinstance(matrix, h5py.Group):
        return matrix["data"][:SAMPLE_ENTRIES]
    if sp.issparse(matrix):
        return matrix.data[:SAMPLE_ENTRIES]
    return np.asarray(matrix[: max(1, SAMPLE_ENTRIES // max(1, matrix.shape[1]))]).ravel()


def _row_blocks(matrix, rows: int, first: int = 0) -> Iterator["sp.csr_matrix"]:
    import h5py
    import scipy.sparse as sp

    if isinstance(matrix, h5py.Group):
        kind = matrix.attrs["encoding-type"]
        if kind == "csc_matrix":
            yield from _csc_file_blocks(matrix, rows, first)
        else:
            yield from _csr_file_blocks(matrix, rows, first)
        return
    if sp.issparse(matrix):
        matrix = sp.csr_matrix(matrix)
    for start in range(first, matrix.shape[0], rows):
        yield sp.csr_matrix(matrix[start : start + rows])


def _csr_file_blocks(group, rows: int, first: int) -> Iterator["sp.csr_matrix"]:
    import scipy.sparse as sp

    num_rows, num_columns = group.attrs["shape"]
    for start in range(first, num_rows, rows):
        indptr = group["indptr"][start : start + rows + 1].astype(np.int64)
        part = slice(indptr[0], indptr[-1])
        shape = (len(indptr) - 1, num_columns)
        yield sp.csr_matrix((group["data"][part], group["indices"][part], indptr - indptr[0]), shape)


def _csc_file_blocks(group, rows: int, begin: int) -> Iterator["sp.csr_matrix"]:
    """A column-wise file gives no rows; each pass over all of it collects as many rows as memory may hold."""
    import scipy.sparse as sp

    num_rows, num_columns = group.attrs["shape"]
    indptr = group["indptr"][:].astype(np.int64)
    num_passes = -(-int(indptr[-1]) // PASS_ENTRIES) or 1
    pass_rows = -(-num_rows // num_passes)
    pass_rows = -(-pass_rows // rows) * rows
    for first in range(begin, num_rows, pass_rows):
        last = min(first + pass_rows, num_rows)
        parts = []
        for start in range(0, int(indptr[-1]), READ_ENTRIES):
            stop = min(start + READ_ENTRIES, int(indptr[-1]))
            row = group["indices"][start:stop]
            keep = np.flatnonzero((row >= first) & (row < last))
            column = (np.searchsorted(indptr, start + keep, side="right") - 1).astype(row.dtype)
            parts.append((group["data"][start:stop][keep], row[keep] - first, column))
        data, row, column = (np.concatenate(pieces) for pieces in zip(*parts, strict=True)) if parts else ([], [], [])
        del parts
        block = sp.csr_matrix((data, (row, column)), (last - first, num_columns))
        del data, row, column
        for start in range(0, last - first, rows):
            yield block[start : start + rows]


def _as_int32(block: "sp.csr_matrix") -> "sp.csr_matrix":
    counts = block.astype(np.int32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts
