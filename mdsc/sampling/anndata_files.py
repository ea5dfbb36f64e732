"""h5ad files in and out: read in full, written beside and then renamed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mdsc.atomic import replacing
from mdsc.data.anndata_counts import open_counts
from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def read_h5ad(path: Path, layer: str | None) -> "AnnData":
    """The whole file. A look at its first counts comes first: what is no count file is told before it is read."""
    import anndata

    with open_counts(path, layer):
        pass
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no h5ad file, or damaged ({str(error).splitlines()[0]})") from error


def check_output(path: Path, source: Path | None) -> None:
    """Before the work begins: can this file be written, and is it not the input?"""
    if path.suffix != ".h5ad":
        raise UserError(f"--output: {path} does not end in .h5ad, the one format that is written.")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; give the name of a file in it.")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"--output: {path} is the input itself; give another name.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output: {path} cannot be written: {parent} is no folder that takes new files.")


def write_h5ad(adata: "AnnData", path: Path) -> None:
    """Lightly compressed; columns keep their types."""
    try:
        with replacing(path) as beside:
            adata.write_h5ad(beside, compression="gzip", compression_opts=1, convert_strings_to_categoricals=False)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error}.") from error


def read_obs(path: Path) -> "pd.DataFrame":
    """obs of an h5ad file, and nothing else of it."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            return read_elem(file["obs"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no h5ad file, or damaged ({str(error).splitlines()[0]})") from error
