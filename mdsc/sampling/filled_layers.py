"""What filling in adds to an AnnData, for some cells after the other: its layers as CSR matrices, by name.

mdsc_sampled                one draw of all hidden counts of a cell together; visible counts as they were
mdsc_sampled_1, _2, ...     further draws, independent of it
mdsc_mean                   expected count of each hidden gene given the visible ones; else the count
mdsc_sd                     standard deviation of each hidden count; 0 where the count is visible
mdsc_q5, mdsc_q50, ...      quantiles of each hidden count, by percent; else the count
mdsc_hidden                 which counts were hidden
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mdsc.sampling.inpaint import Filled
from mdsc.sampling.options import AnswerOptions, draw_name, quantile_name

if TYPE_CHECKING:
    import scipy.sparse as sp

OURS = re.compile(r"mdsc_(sampled(_\d+)?|mean|sd|q[\d.e+-]+|hidden)")
"""Layers that are ours, and go where cells are filled in anew."""


@dataclass(frozen=True)
class Portion:
    """Some cells after the other."""

    layers: "dict[str, sp.csr_matrix | np.ndarray]"
    """(cells, genes) each."""
    totals: Float64[np.ndarray, " 4"]
    """Cells, those of them without any count, expected hidden counts, and what of these is left out of mdsc_mean."""


def filled_portion(
    counts: "sp.csr_matrix",
    columns: Int64[np.ndarray, " genes"],
    filled: Filled,
    hidden: Bool[Tensor, "cells genes"],
    options: AnswerOptions,
) -> Portion:
    """counts: (cells, genes) of all genes; the others are of the modelled genes, which are at `columns`."""
    import scipy.sparse as sp

    whole = counts.toarray()
    posterior, is_hidden = filled.posterior, hidden.numpy()
    mean = posterior.mean.numpy()
    left_out = is_hidden & (mean < options.mean_floor)

    def layer(values: np.ndarray, others: np.ndarray, *, dense: bool = False) -> "sp.csr_matrix | np.ndarray":
        placed = others.astype(values.dtype)
        placed[:, columns] = values
        return placed if dense else sp.csr_matrix(placed)

    is_dense = not options.mean_floor
    zeros = np.zeros_like(whole)
    layers = {draw_name(place): layer(draw.numpy(), whole) for place, draw in enumerate(filled.draws)}
    layers["mdsc_mean"] = layer(np.where(left_out, 0, mean), whole, dense=is_dense)
    if posterior.sd is not None:
        layers["mdsc_sd"] = layer(np.where(left_out, 0, posterior.sd.numpy()), zeros, dense=is_dense)
    layers |= {quantile_name(level): layer(values.numpy(), whole) for level, values in posterior.quantiles.items()}
    layers["mdsc_hidden"] = layer(is_hidden, zeros)
    assert list(layers) == list(options.layers)
    empty = int((np.diff(counts.indptr) == 0).sum())
    totals = [len(whole), empty, mean[is_hidden].sum(dtype=float), mean[left_out].sum(dtype=float)]
    return Portion(layers, np.array(totals))


def joined(parts: "Sequence[sp.csr_matrix | np.ndarray]") -> "sp.csr_matrix | np.ndarray":
    import scipy.sparse as sp

    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else sp.vstack(parts, format="csr")
