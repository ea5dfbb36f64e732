"""A copy of an h5ad file with more in layers, obs, var, obsm, varm and uns, written a block of cells at a time.

What is not ours is copied by HDF5 from file to file as it is stored, so that it keeps its bits, its types and its
compression, and no memory holds it. Written beside and then renamed.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsc.atomic import replacing
from mdsc.data.h5ad_writer import GrowingArray, GrowingCsr
from mdsc.data.row_group_checks import first_line

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData

OF_RAW = {"X": "raw/X", "var": "raw/var", "varm": "raw/varm"}
"""What an AnnData made of its raw takes from there; it has no layers."""
NOTHING = re.compile(r"(?!)")


class AnnotatedCopy:
    """What is added to the open file; an entry of the same name is replaced, a layer must not be there."""

    def __init__(self, file: "h5py.File"):
        self._file = file

    def add_layer(self, name: str, dtype: type, num_genes: int, *, dense: bool) -> GrowingArray | GrowingCsr:
        """An array of float32 or a CSR matrix without rows, to append cells to."""
        group = self._group("layers")
        return GrowingArray(group, name, num_genes) if dense else GrowingCsr(group, name, dtype, num_genes)

    def add_column(self, kind: str, name: str, values: np.ndarray) -> None:
        """To obs, one value for each cell, or to var, one for each gene."""
        from anndata.io import write_elem

        table = self._file[kind]
        write_elem(table, name, values)
        columns = [*map(str, table.attrs["column-order"]), name]
        table.attrs["column-order"] = np.array(list(dict.fromkeys(columns)), dtype=object)

    def add_uns(self, name: str, value: Any) -> None:
        from anndata.io import write_elem

        write_elem(self._group("uns"), name, value)

    def add_rows(self, kind: str, name: str, num_rows: int, width: int) -> "h5py.Dataset":
        """An array of float32 in obsm or varm to write rows into, `rows[start:stop] = values`; NaN where none come."""
        group = self._group(kind)
        if name in group:
            del group[name]
        chunk = (max(1, min(num_rows, 2**18 // width)), width)
        rows = group.create_dataset(name, (num_rows, width), dtype=np.float32, chunks=chunk, fillvalue=np.nan)
        rows.attrs["encoding-type"], rows.attrs["encoding-version"] = "array", "0.2.0"
        return rows

    def _group(self, name: str) -> "h5py.Group":
        group = self._file.require_group(name)
        if "encoding-type" not in group.attrs:
            group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        return group


@contextmanager
def annotated_copy(
    source: "Path | AnnData", output: Path, *, of_raw: bool = False, leave_out: re.Pattern = NOTHING
) -> Iterator[AnnotatedCopy]:
    """Copy `source` beside `output`, to be added to; it becomes `output` when the block ends well.

    of_raw: the copy has the genes and the X of raw. leave_out: layers that are not copied.
    """
    with replacing(output) as beside:
        _copy(source, beside, of_raw=of_raw, leave_out=leave_out)
        with _open_hdf5(beside, "r+") as file:
            yield AnnotatedCopy(file)


@contextmanager
def _open_hdf5(path: Path, mode: str) -> Iterator["h5py.File"]:
    """An open file, of which a full disk makes an OSError and no more.

    HDF5 may find out on closing, as a RuntimeError; what it could not write it tries again at the process's end, and
    crashes. So there must be room by then.
    """
    import h5py

    file = h5py.File(path, mode)
    try:
        yield file
        file.close()
    except (OSError, RuntimeError) as error:
        os.truncate(path, 0)
        with suppress(OSError, RuntimeError):
            file.close()
        found = re.search(r"error message = '(.+?)'", str(error))
        raise OSError(None, found[1] if found else first_line(error), str(path)) from error
    except BaseException:
        file.close()
        raise


def _copy(source: "Path | AnnData", target: Path, *, of_raw: bool, leave_out: re.Pattern) -> None:
    import anndata
    import h5py

    if isinstance(source, Path):
        with h5py.File(source, "r") as old:
            if "encoding-type" in old.attrs:
                with _open_hdf5(target, "w") as new:
                    _copy_file(old, new, of_raw=of_raw, leave_out=leave_out)
                return
        source = anndata.read_h5ad(source)  # of an anndata of before 2021, whose files look otherwise
    kept = source.raw.to_adata() if of_raw else source.copy()
    for name in filter(leave_out.fullmatch, list(kept.layers)):
        del kept.layers[name]
    kept.write_h5ad(target, compression="gzip", compression_opts=1, convert_strings_to_categoricals=False)


def _copy_file(old: "h5py.File", new: "h5py.File", *, of_raw: bool, leave_out: re.Pattern) -> None:
    new.attrs.update(old.attrs)
    for name in old:
        if of_raw and name in ("raw", "layers", *OF_RAW):
            continue
        if name == "layers":
            layers = new.create_group(name)
            layers.attrs.update(old[name].attrs)
            for layer in old[name]:
                if not leave_out.fullmatch(layer):
                    old.copy(old[name][layer], layers, layer)
        else:
            old.copy(old[name], new, name)
    if of_raw:
        for name, place in OF_RAW.items():
            if place in old:
                old.copy(old[place], new, name)
