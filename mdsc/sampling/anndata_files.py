"""The h5ad file that filling in writes: the input's contents as they were, and the new layers, a portion at a time.

What is not ours is copied by HDF5 from file to file as it is stored, so that it keeps its bits, its types and its
compression, and no memory holds it. Written beside and then renamed.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from mdsc.atomic import replacing
from mdsc.data.h5ad_writer import GrowingArray, GrowingCsr
from mdsc.data.row_group_checks import first_line
from mdsc.errors import UserError
from mdsc.sampling.filled_layers import OURS, AnswerOptions
from mdsc.sampling.finished_cells import FinishedCells

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

OF_RAW = {"X": "raw/X", "var": "raw/var", "varm": "raw/varm"}
"""What an AnnData made of its raw takes from there; it has no layers."""


def check_output(path: Path, source: Path | None) -> None:
    """Before the work begins: can this file be written, is there room for it, and is it not the input?"""
    if path.suffix != ".h5ad":
        raise UserError(f"--output: {path} does not end in .h5ad, the one format that is written.")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; give the name of a file in it.")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"--output: {path} is the input itself; give another name.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output: {path} cannot be written: {parent} is no folder that takes new files.")
    if source is not None and source.exists():
        require_room(path, source.stat().st_size)


def require_room(path: Path, size: int) -> None:
    """OSError if the disk of an output has not so many bytes left: HDF5 takes a full disk badly."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(parent).free) < size:
        what = f"it takes some {size / 1e6:,.1f} MB, and there are {free / 1e6:,.1f} MB left"
        raise OSError(errno.ENOSPC, what, str(path))


def write_filled(
    source: "Path | AnnData",
    output: Path,
    portions: FinishedCells,
    answer: AnswerOptions,
    *,
    layer: str | None,
    is_modelled: Bool[np.ndarray, " genes"],
    uns: Mapping[str, Any],
) -> None:
    """source: what was filled in; layer: where its counts are ("raw": the result has the genes and the X of raw)."""
    import h5py
    from anndata.io import write_elem

    require_room(output, (source.stat().st_size if isinstance(source, Path) else 0) + int(0.6 * portions.num_bytes))
    with replacing(output) as beside:
        _copy(source, beside, of_raw=layer == "raw")
        with open_hdf5(beside, "r+") as file:
            group = file.require_group("layers")
            if "encoding-type" not in group.attrs:
                group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
            layers = {
                name: GrowingArray(group, name, len(is_modelled))
                if name in answer.dense
                else GrowingCsr(group, name, dtype, len(is_modelled))
                for name, dtype in answer.layers.items()
            }
            for portion in portions:
                for name, matrix in layers.items():
                    matrix.append(portion.layers[name])
            var = file["var"]
            if "mdsc_modelled" not in (columns := list(var.attrs["column-order"])):
                var.attrs["column-order"] = np.array([*columns, "mdsc_modelled"], dtype=h5py.string_dtype())
            write_elem(var, "mdsc_modelled", is_modelled)
            if "uns" not in file:
                write_elem(file, "uns", {})
            write_elem(file["uns"], "mdsc", dict(uns))


@contextmanager
def open_hdf5(path: Path, mode: str) -> Iterator["h5py.File"]:
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
        raise OSError(found[1] if found else first_line(error)) from error
    except BaseException:
        file.close()
        raise


def _copy(source: "Path | AnnData", target: Path, *, of_raw: bool) -> None:
    """All but our layers, as a file."""
    import anndata
    import h5py

    if isinstance(source, Path):
        with h5py.File(source, "r") as old:
            if "encoding-type" in old.attrs:
                with open_hdf5(target, "w") as new:
                    _copy_file(old, new, of_raw=of_raw)
                return
        source = anndata.read_h5ad(source)  # of an anndata of before 2021, whose files look otherwise
    kept = source.raw.to_adata() if of_raw else source.copy()
    for name in filter(OURS.fullmatch, list(kept.layers)):
        del kept.layers[name]
    kept.write_h5ad(target, compression="gzip", compression_opts=1, convert_strings_to_categoricals=False)


def _copy_file(old, new, *, of_raw: bool) -> None:
    new.attrs.update(old.attrs)
    for name in old:
        if of_raw and name in ("raw", "layers", *OF_RAW):
            continue
        if name == "layers":
            layers = new.create_group(name)
            layers.attrs.update(old[name].attrs)
            for layer in old[name]:
                if not OURS.fullmatch(layer):
                    old.copy(old[name][layer], layers, layer)
        else:
            old.copy(old[name], new, name)
    if of_raw:
        for name, place in OF_RAW.items():
            if place in old:
                old.copy(old[place], new, name)


def read_obs(path: Path) -> "pd.DataFrame":
    """obs of an h5ad file, and nothing else of it."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            return read_elem(file["obs"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no h5ad file, or damaged ({str(error).splitlines()[0]})") from error
