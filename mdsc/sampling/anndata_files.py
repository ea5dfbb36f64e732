"""h5ad files that commands write and read: whether an output can be written, and what filling in writes to it."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from mdsc.errors import UserError
from mdsc.sampling.annotated_copy import annotated_copy
from mdsc.sampling.filled_layers import OURS
from mdsc.sampling.finished_cells import FinishedCells
from mdsc.sampling.options import AnswerOptions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


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
    require_room(output, (source.stat().st_size if isinstance(source, Path) else 0) + int(0.6 * portions.num_bytes))
    with annotated_copy(source, output, of_raw=layer == "raw", leave_out=OURS) as copy:
        layers = {
            name: copy.add_layer(name, dtype, len(is_modelled), dense=name in answer.dense)
            for name, dtype in answer.layers.items()
        }
        for portion in portions:
            for name, matrix in layers.items():
                matrix.append(portion.layers[name])
        copy.add_column("var", "mdsc_modelled", is_modelled)
        copy.add_uns("mdsc", dict(uns))


def read_obs(path: Path) -> "pd.DataFrame":
    """obs of an h5ad file, and nothing else of it."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            return read_elem(file["obs"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no h5ad file, or damaged ({str(error).splitlines()[0]})") from error
