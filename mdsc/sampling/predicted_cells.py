"""Cells predicted under a perturbation, one portion for each; and the real control cells that they are made from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int64

from mdsc.data.anndata_counts import CellCounts, open_counts
from mdsc.data.condition_levels import near_names
from mdsc.data.perturbations import COLUMN, CONTROL, perturbed_genes
from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

MOST_CELLS = 500
"""Of a perturbation, where their number is not given."""


@dataclass(frozen=True, eq=False)
class PredictedCells:
    """All cells of one perturbation."""

    perturbation: str
    rows: Int64[np.ndarray, " cells"]
    """Of the control cell that each was made from; -1: none."""
    columns: Int64[np.ndarray, " genes"]
    """Of these genes among the control cells' genes; the same for all perturbations of a prediction."""
    expression: Float32[np.ndarray, "cells genes"]
    """Log expression (`mdsc.data.log_expression`)."""
    counts: "sp.csr_matrix | None" = None
    """Sampled counts, int32; of a masked model alone."""
    expected: Float32[np.ndarray, "cells genes"] | None = None
    """Log expression of posterior mean counts; of edited cells alone."""


def read_controls(
    source: "AnnData | str | Path", layer: str | None, name: str, say: Callable[[str], None]
) -> CellCounts:
    """The control cells of an AnnData or an h5ad file: those whose obs["perturbation"] is ctrl, else all.

    UserError where there is none, or for what `open_counts` tells.
    """
    import scipy.sparse as sp

    with open_counts(source, layer, name) as opened:
        is_control = _is_control(opened.obs, opened.name, say)
        kept, start = [], 0
        for chunk in opened.chunks():
            kept.append(chunk[is_control[start : start + chunk.shape[0]]])
            start += chunk.shape[0]
        return CellCounts(sp.vstack(kept, format="csr"), opened.obs[is_control], opened.var)


def _is_control(obs: "pd.DataFrame", name: str, say: Callable[[str], None]) -> Bool[np.ndarray, " cells"]:
    if COLUMN not in obs:
        say(f"{name} has no obs[{COLUMN!r}]: all of its {len(obs):,} cells are taken for control cells")
        return np.ones(len(obs), dtype=bool)
    column = obs[COLUMN]
    labels = np.where(column.isna(), "", column.astype(str))
    levels = sorted(set(labels) - {""})
    controls = [level for level in levels if not perturbed_genes(level)]
    is_control = np.isin(labels, controls)
    if not is_control.any():
        raise UserError(
            f"{name}: no cell has obs[{COLUMN!r}] {CONTROL}; {near_names(CONTROL, levels, 'it has')}.\n"
            f"Call the level of control cells {CONTROL}; or leave the column out, where all cells are controls."
        )
    if left := int((~is_control).sum()):
        say(f"{name}: {is_control.sum():,} control cells; {left:,} cells of other perturbations are left out")
    return is_control


def chosen_rows(num_controls: int, num_cells: int | None, seed: int) -> Int64[np.ndarray, " cells"]:
    """Control cells that cells are made from, the same for each perturbation: none twice, while there are more."""
    rng = np.random.default_rng(seed)
    number = min(num_controls, MOST_CELLS) if num_cells is None else num_cells
    rounds = [rng.permutation(num_controls) for _ in range(-(-number // num_controls))]
    return np.concatenate(rounds)[:number].astype(np.int64)


def seed_of(seed: int, perturbation: str) -> int:
    """For the draws of one perturbation, whatever others are asked for beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {perturbation}".encode()).digest()[:7], "big")
