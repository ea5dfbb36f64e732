"""Cells with an embedding, labels and counts, out of an h5ad file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from mdsc.data.anndata_counts import open_counts
from mdsc.data.condition_levels import near_names
from mdsc.errors import UserError

LEAST_OF_LABEL = 5
"""Cells of a label; of fewer, not every fold has one."""
TRAIN = "train"


@dataclass(frozen=True, eq=False)
class EmbeddedCells:
    key: str
    points: Float[np.ndarray, "cells k"]
    counts: sp.csr_matrix
    labels: Int[np.ndarray, " cells"]
    label_names: tuple[str, ...]
    batches: Int[np.ndarray, " cells"] | None
    is_train: Bool[np.ndarray, " cells"] | None
    left_out: int
    """Cells without a label, or of one that few have."""


def read_embedded(
    path: Path,
    key: str,
    columns: Mapping[str, str | None],
    *,
    layer: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> EmbeddedCells:
    """columns: of obs, by the flags --label, --batch and --train-split."""
    wanted = [name for name in columns.values() if name is not None]
    with open_counts(path, layer, obs_columns=wanted, unique_genes=False) as source:
        for flag, name in columns.items():
            if name is not None and name not in source.obs:
                near = near_names(name, source.obs_columns, "it has")
                raise UserError(f"{flag}: {path} has no column obs[{name!r}]; {near}.")
        points = _embedding(path, key)
        cells = source.read()
    obs, label = cells.obs, columns["--label"]
    if len(points) != len(obs):
        raise UserError(f"{path}: obsm[{key!r}] has {len(points)} rows for {len(obs)} cells; embed the file again.")
    known = obs[label].notna().to_numpy()
    names, frequency = np.unique(obs[label][known].astype(str), return_counts=True)
    rare = names[frequency < LEAST_OF_LABEL]
    keep = np.flatnonzero(known & ~obs[label].astype(str).isin(rare).to_numpy())
    if left_out := len(obs) - len(keep):
        which = f"; of few cells: {', '.join(rare[:5])}{', ...' if len(rare) > 5 else ''}" if len(rare) else ""
        say(f"{left_out:,} cells are left out: without a label, or of one that fewer than {LEAST_OF_LABEL} have{which}")
    if len(keep) == 0:
        raise UserError(f"--label: no value of obs[{label!r}] of {path} has {LEAST_OF_LABEL} cells or more.")
    if not np.isfinite(points[keep]).all():
        raise UserError(f"{path}: obsm[{key!r}] has values that are not finite; embed the file again.")
    label_names, labels = np.unique(obs[label].iloc[keep].astype(str), return_inverse=True)
    batch, split = columns["--batch"], columns["--train-split"]
    for flag, name in (("--batch", batch), ("--train-split", split)):
        if name is not None and (missing := int(obs[name].iloc[keep].isna().sum())):
            raise UserError(f"{flag}: obs[{name!r}] of {path} has no value in {missing:,} cells; give them one.")
    is_train = None if split is None else (obs[split].iloc[keep].astype(str) == TRAIN).to_numpy()
    if is_train is not None and not is_train.any():
        values = ", ".join(sorted(obs[split].astype(str).unique())[:5])
        raise UserError(f"--train-split: no cell has {TRAIN!r} in obs[{split!r}]; it has {values}.")
    return EmbeddedCells(
        key=key,
        points=points[keep],
        counts=cells.counts[keep],
        labels=labels.astype(np.int64),
        label_names=tuple(label_names.tolist()),
        batches=None if batch is None else np.unique(obs[batch].iloc[keep].astype(str), return_inverse=True)[1],
        is_train=is_train,
        left_out=left_out,
    )


def _embedding(path: Path, key: str) -> Float[np.ndarray, "cells k"]:
    import h5py
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        there = list(file.get("obsm", ()))
        if key not in there:
            has = f"it has {', '.join(there)}" if there else "it has none; `mdsc embed` makes one"
            raise UserError(f"--key: {path} has no obsm[{key!r}]; {has}.")
        values = read_elem(file["obsm"][key])
    points = np.asarray(values.toarray() if sp.issparse(values) else values)
    if points.ndim != 2 or points.dtype.kind not in "fiu" or points.shape[1] == 0:
        raise UserError(f"--key: obsm[{key!r}] of {path} is no table of numbers.")
    return points.astype(np.float64)
