"""h5ad files and matrices in them, written a portion of cells at a time at constant memory.

AnnData's on-disk format (anndata 0.12, "File format": csr_matrix 0.1.0, dataframe 0.2.0, categorical 0.2.0) with arrays
that grow. anndata's own `sparse_dataset(...).append` cannot pass 2^31 counts in a file that began with fewer, and obs
cannot be appended to at all.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsc.atomic import replacing

if TYPE_CHECKING:
    import scipy.sparse as sp

# Entries of a chunk on disk: 256 kB of int32, the sort of size that HDF5's cache is made for.
CHUNK = 1 << 16


class GrowingCsr:
    """A CSR matrix in an h5ad file, whole after every `append`. dtype: int32, float32 or bool."""

    def __init__(self, parent, name: str, dtype, num_columns: int) -> None:
        self._group = parent.create_group(name)
        self._group.attrs.update(_encoding("csr_matrix", "0.1.0"))
        self._group.attrs["shape"] = np.array([0, num_columns], dtype=np.int64)
        self._data, self._indices = (_growing(self._group, *one) for one in (("data", dtype), ("indices", np.int32)))
        self._indptr = _growing(self._group, "indptr", np.int64)
        _append(self._indptr, np.zeros(1, dtype=np.int64))

    def append(self, rows: "sp.csr_matrix") -> None:
        num_rows, num_columns = self._group.attrs["shape"]
        assert rows.shape[1] == num_columns, rows.shape
        _append(self._indptr, rows.indptr[1:].astype(np.int64) + len(self._data))
        _append(self._data, rows.data)
        _append(self._indices, rows.indices)
        self._group.attrs["shape"] = np.array([num_rows + rows.shape[0], num_columns], dtype=np.int64)


class GrowingArray:
    """A dense float32 array (cells, columns) in an h5ad file, whole after every `append`."""

    def __init__(self, parent, name: str, num_columns: int) -> None:
        rows = max(1, CHUNK // max(1, num_columns))
        self._array = parent.create_dataset(
            name, (0, num_columns), np.float32, maxshape=(None, num_columns), chunks=(rows, num_columns),
            compression="lzf", shuffle=True,
        )  # fmt: skip
        self._array.attrs.update(_encoding("array", "0.2.0"))

    def append(self, rows: np.ndarray) -> None:
        _append(self._array, rows)


class H5adWriter:
    """Writes beside `path` and puts it in its place when the `with` block ends well; else leaves nothing.

    `columns` are the categorical columns of obs, `var` the columns of var beside the names of the genes, `uns` small
    values that say where the cells are from. `matrices`: types of X and of layers by name; float32 with `dense` ones
    are arrays, all others CSR.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str],
        var: Mapping[str, Sequence[str]],
        var_names: Sequence[str],
        uns: Mapping[str, Any] | None = None,
        *,
        matrices: Mapping[str, type] | None = None,
        dense: Collection[str] = (),
    ) -> None:
        self.path = Path(path)
        self._columns, self._var, self._var_names, self._uns = tuple(columns), var, var_names, uns or {}
        self._levels: dict[str, dict[str, int]] = {name: {} for name in columns}
        self._types = dict(matrices or {"X": np.int32})
        self._dense = dense
        self._num_cells = 0

    def __enter__(self) -> "H5adWriter":
        import h5py

        self._replacing = replacing(self.path)
        beside = self._replacing.__enter__()
        self._file = h5py.File(beside, "w")
        self._file.attrs.update(_encoding("anndata", "0.1.0"))
        layers = self._file.create_group("layers")
        layers.attrs.update(_encoding("dict", "0.1.0"))
        self._matrices = {
            name: self._growing_matrix(self._file if name == "X" else layers, name) for name in self._types
        }
        obs = self._file.create_group("obs")
        obs.attrs.update(_encoding("dataframe", "0.2.0"))
        obs.attrs["_index"] = "_index"
        # An empty list has no type of its own, and anndata wants text.
        obs.attrs["column-order"] = np.array(self._columns, dtype=h5py.string_dtype())
        self._names = _growing(obs, "_index", h5py.string_dtype())
        self._names.attrs.update(_encoding("string-array", "0.2.0"))
        self._codes = {}
        for name in self._columns:
            column = obs.create_group(name)
            column.attrs.update(_encoding("categorical", "0.2.0") | {"ordered": False})
            self._codes[name] = _growing(column, "codes", np.int32)
            self._codes[name].attrs.update(_encoding("array", "0.2.0"))
        return self

    def _growing_matrix(self, parent, name: str) -> GrowingCsr | GrowingArray:
        if name in self._dense:
            assert self._types[name] is np.float32
            return GrowingArray(parent, name, len(self._var_names))
        return GrowingCsr(parent, name, self._types[name], len(self._var_names))

    def write(
        self,
        counts: "sp.csr_matrix | np.ndarray",
        columns: Mapping[str, Sequence[str | None]],
        names: Sequence[str] | np.ndarray,
        layers: "Mapping[str, sp.csr_matrix | np.ndarray] | None" = None,
    ) -> None:
        """Add cells: X (cells, genes), one value a cell of each column, where "" and None are unknown, and layers."""
        matrices = {"X": counts} | dict(layers or {})
        assert matrices.keys() == self._matrices.keys(), matrices.keys()
        for name, matrix in matrices.items():
            assert matrix.shape == (len(names), len(self._var_names)), (name, matrix.shape)
            self._matrices[name].append(matrix)
        _append(self._names, np.asarray(names, dtype=object))
        for name, levels in self._levels.items():
            codes = [levels.setdefault(value, len(levels)) if value else -1 for value in columns[name]]
            _append(self._codes[name], np.array(codes, dtype=np.int32))
        self._num_cells += len(names)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._finish()
        except BaseException as failure:
            self._replacing.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._replacing.__exit__(kind, error, trace)

    def _finish(self) -> None:
        import pandas as pd
        from anndata.io import write_elem

        for name, levels in self._levels.items():
            # Levels are sorted, as pandas does it, so that the order of cells does not show.
            order = sorted(levels)
            place = np.full(len(levels) + 1, -1, dtype=np.int32)
            place[[levels[level] for level in order]] = np.arange(len(order))
            codes = self._codes[name]
            for start in range(0, self._num_cells, CHUNK):
                codes[start : start + CHUNK] = place[codes[start : start + CHUNK]]
            write_elem(self._file["obs"][name], "categories", np.array(order, dtype=object))
        write_elem(self._file, "var", pd.DataFrame(dict(self._var), index=list(self._var_names)))
        write_elem(self._file, "uns", dict(self._uns))
        for name in ("obsm", "varm", "obsp", "varp"):
            write_elem(self._file, name, {})


def _encoding(kind: str, version: str) -> dict[str, str]:
    return {"encoding-type": kind, "encoding-version": version}


def _growing(group, name: str, dtype):
    return group.create_dataset(
        name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(CHUNK,), compression="lzf", shuffle=True
    )


def _append(dataset, values: np.ndarray) -> None:
    size = len(dataset)
    dataset.resize(size + len(values), axis=0)
    dataset[size:] = values
