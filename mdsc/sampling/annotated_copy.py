"""A copy of an h5ad file with more in obs, obsm, varm and uns, written a block of cells at a time.

The file is copied as it is, so that nothing else in it changes, however large it is; then it is added to, and takes its
name when all is there.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdsc.atomic import replacing
from mdsc.errors import UserError
from mdsc.sampling.anndata_files import open_hdf5


class AnnotatedCopy:
    """What is added to the open file; an entry of the same name is replaced."""

    def __init__(self, file):
        self._file = file

    def add_obs(self, name: str, values: np.ndarray) -> None:
        """A column of numbers, one for each cell."""
        from anndata.io import write_elem

        obs = self._file["obs"]
        write_elem(obs, name, values)
        columns = [str(column) for column in obs.attrs["column-order"] if column != name]
        obs.attrs["column-order"] = np.array([*columns, name], dtype=object)

    def add_uns(self, name: str, value: Any) -> None:
        from anndata.io import write_elem

        write_elem(self._group("uns"), name, value)

    def add_rows(self, kind: str, name: str, num_rows: int, width: int):
        """An array of float32 in obsm or varm to write rows into, `rows[start:stop] = values`; NaN where none come."""
        group = self._group(kind)
        if name in group:
            del group[name]
        chunk = (max(1, min(num_rows, 2**18 // width)), width)
        rows = group.create_dataset(name, (num_rows, width), dtype=np.float32, chunks=chunk, fillvalue=np.nan)
        rows.attrs["encoding-type"], rows.attrs["encoding-version"] = "array", "0.2.0"
        return rows

    def _group(self, name: str):
        from anndata.io import write_elem

        if name not in self._file:
            write_elem(self._file, name, {})
        return self._file[name]


@contextmanager
def annotated_copy(source: Path, output: Path) -> Iterator[AnnotatedCopy]:
    """Copy `source` beside `output`, to be added to; it becomes `output` when the block ends well."""
    import h5py

    try:
        with replacing(output) as beside:
            with h5py.File(source, "r") as file:
                is_old = "encoding-type" not in file.attrs  # written by an anndata of before 2021
            if is_old:
                import anndata

                anndata.read_h5ad(source).write_h5ad(beside)
            else:
                shutil.copyfile(source, beside)
                beside.chmod(beside.stat().st_mode | 0o200)  # the input may be write-protected
            with open_hdf5(beside, "r+") as file:
                yield AnnotatedCopy(file)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error}.") from error
