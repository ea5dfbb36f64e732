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

from mdsc.errors import UserError
from mdsc.sampling.inpaint import Filled

if TYPE_CHECKING:
    import scipy.sparse as sp

OURS = re.compile(r"mdsc_(sampled(_\d+)?|mean|sd|q[\d.e+-]+|hidden)")
"""Layers that are ours, and go where cells are filled in anew."""
INTERVAL = (0.05, 0.5, 0.95)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    num_draws: int = 1
    """Times that each cell is drawn: layers mdsc_sampled, mdsc_sampled_1, ... With 2 or more the standard deviation
    and quantiles of each hidden count are written too. 0 draws nothing: expected counts alone, in one pass."""
    quantiles: tuple[float, ...] | None = None
    """Write mdsc_sd and these quantiles of each hidden count, e.g. 0.05 0.5 0.95; exact, whatever --num-draws is."""
    mean_floor: float = 0.01
    """Hidden genes of a lower expected count are left out of mdsc_mean and mdsc_sd, as if it were 0; with 0 none are,
    and both are dense."""

    def __post_init__(self) -> None:
        if self.num_draws < 0:
            raise UserError(f"--num-draws is {self.num_draws}; it takes 0 or more.")
        for level in self.quantiles or ():
            if not 0 < level < 1:
                raise UserError(f"--quantiles: {level:g} is not between 0 and 1; give e.g. 0.05 0.5 0.95.")
        if not 0 <= self.mean_floor < float("inf"):
            raise UserError(f"--mean-floor is {self.mean_floor:g}; it takes an expected count, e.g. 0.01, or 0.")

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(sorted(set(self.quantiles or (INTERVAL if self.num_draws > 1 else ()))))

    @property
    def with_sd(self) -> bool:
        return bool(self.levels)

    @property
    def layers(self) -> dict[str, type]:
        """Names and types of the layers."""
        draws = {draw_name(draw): np.int32 for draw in range(self.num_draws)}
        spread = {"mdsc_sd": np.float32} if self.with_sd else {}
        quantiles = {quantile_name(level): np.int32 for level in self.levels}
        return draws | {"mdsc_mean": np.float32} | spread | quantiles | {"mdsc_hidden": np.bool_}

    @property
    def dense(self) -> tuple[str, ...]:
        """Those that are arrays, and not CSR."""
        return () if self.mean_floor else tuple(name for name in ("mdsc_mean", "mdsc_sd") if name in self.layers)


@dataclass(frozen=True)
class Portion:
    """Some cells after the other."""

    layers: "dict[str, sp.csr_matrix | np.ndarray]"
    """(cells, genes) each."""
    totals: Float64[np.ndarray, " 4"]
    """Cells, those of them without any count, expected hidden counts, and what of these is left out of mdsc_mean."""


def draw_name(draw: int) -> str:
    return f"mdsc_sampled_{draw}" if draw else "mdsc_sampled"


def quantile_name(level: float) -> str:
    return f"mdsc_q{100 * level:g}"


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
