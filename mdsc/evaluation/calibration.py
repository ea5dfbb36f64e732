"""Whether predicted laws of hidden counts say how uncertain they are: PIT, and what central intervals cover.

The law of a hidden count is that of `sample.py`'s draws: each token's probability sits on the whole count that the
token stands for in the cell (`Tokenizer.decode`, from the cell's visible counts). With F its distribution function and
x the true count:

PIT            the non-randomised probability integral transform of Czado, Gneiting & Held 2009, "Predictive model
               assessment for count data", eq. 2: x adds mass 1, spread evenly over [F(x - 1), F(x)]. If the laws are
               right, the mean over positions is uniform on [0, 1], however discrete they are.
coverage_50    share of the PIT's mass in [.25, .75]
coverage_90    share of it in [.05, .95]: how often an interval holds x that has *exactly* 90% under the law, its ends
               taking part with the chance that makes it so
pit_error      largest |PIT's distribution function - uniform| at multiples of 1/20
interval_*     the plain interval of whole counts from the quantile at (1 - q)/2 to that at (1 + q)/2, both ends taken:
               how often x is in it (`coverage`), how often it should be under the law (`claimed`: at least q, and near
               1 where most counts are 0), and how wide it is in counts (`width`)

All of it twice: over all hidden positions, and over those of expected count 1 or more under the predictor's own law. A
zero that was all but sure spreads its mass evenly over nearly all of [0, 1] and can hardly be told from a right one, so
that the first is dominated by what is easy. The choice of the second looks at nothing that is hidden: right laws stay
uniform on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float64, Integer

PIT_BINS = 20
LEVELS = (0.5, 0.9)
EXPECTED_COUNT = 1.0
GROUPS = ("all", "expected_1_or_more")
"""Names of the two sets of positions in the JSON."""


@dataclass(frozen=True)
class Calibration:
    """Sums over hidden positions of each cell; additive as `CellScores` are. Groups: GROUPS; levels: LEVELS."""

    positions: Float64[np.ndarray, "cells groups"]
    pit: Float64[np.ndarray, "cells groups bins"]
    """Mass of the PIT in each bin; over bins it sums to `positions`."""
    covered: Float64[np.ndarray, "cells groups levels"]
    claimed: Float64[np.ndarray, "cells groups levels"]
    width: Float64[np.ndarray, "cells groups levels"]

    @classmethod
    def concatenated(cls, parts: Sequence["Calibration"]) -> "Calibration":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __add__(self, other: "Calibration") -> "Calibration":
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def weighted(self, weights: Float64[np.ndarray, "draws cells"]) -> dict[str, dict[str, np.ndarray]]:
        """{group: {metric: (draws,)}}, "pit" (draws, bins) among them; NaN where a group has no position."""
        total = {field.name: np.tensordot(weights, getattr(self, field.name), axes=1) for field in fields(self)}
        metrics = {}
        for group, name in enumerate(GROUPS):
            positions = total["positions"][:, group]
            has_any = positions > 0

            def mean(values: np.ndarray, positions=positions, has_any=has_any) -> np.ndarray:
                shape = (-1,) + (1,) * (values.ndim - 1)
                return np.where(has_any.reshape(shape), values / np.maximum(positions, 1).reshape(shape), np.nan)

            pit = mean(total["pit"][:, group])
            of_group = {"positions": positions, "pit": pit}
            for place, level in enumerate(LEVELS):
                tail = round((1 - level) / 2 * PIT_BINS)
                of_group[f"coverage_{level * 100:.0f}"] = pit[:, tail : PIT_BINS - tail].sum(axis=1)
                for what in ("covered", "claimed", "width"):
                    metric = f"interval_{level * 100:.0f}_{'coverage' if what == 'covered' else what}"
                    of_group[metric] = mean(total[what][:, group, place])
            of_group["pit_error"] = np.abs(pit.cumsum(axis=1) - np.arange(1, PIT_BINS + 1) / PIT_BINS).max(axis=1)
            metrics[name] = of_group
        return metrics


def calibration_of(
    p: Float[np.ndarray, "positions V"],
    cell: Integer[np.ndarray, " positions"],
    counts: Integer[np.ndarray, " positions"],
    table: Float64[np.ndarray, "cells V"],
    mean: Float64[np.ndarray, " positions"],
) -> Calibration:
    """Sums for one batch of cells.

    p: predicted law of each hidden position; cell: the row that it is in, ascending; counts: the truth; table:
    `Tokenizer.decode_table`; mean: expected count under p.
    """
    values = np.rint(table).astype(np.int64)  # as Tokenizer.decode does
    values[:, 1:] = np.maximum(values[:, 1:], 1)
    num_cells, groups, levels = len(table), len(GROUPS), len(LEVELS)
    positions, pit = np.zeros((num_cells, groups)), np.zeros((num_cells, groups, PIT_BINS))
    covered, claimed, width = (np.zeros((num_cells, groups, levels)) for _ in range(3))
    bounds = np.searchsorted(cell, np.arange(num_cells + 1))
    for i, (start, stop) in enumerate(pairwise(bounds)):
        law, x = _Law(p[start:stop], values[i]), counts[start:stop]
        in_group = np.stack([np.ones(stop - start), mean[start:stop] >= EXPECTED_COUNT])
        positions[i] = in_group.sum(axis=1)
        pit[i] = in_group @ pit_mass(law.up_to(x - 1), law.up_to(x))
        for place, level in enumerate(LEVELS):
            low, high = law.quantile((1 - level) / 2), law.quantile((1 + level) / 2)
            covered[i, :, place] = in_group @ ((low <= x) & (x <= high))
            claimed[i, :, place] = in_group @ (law.up_to(high) - law.up_to(low - 1))
            width[i, :, place] = in_group @ (high - low)
    return Calibration(positions, pit, covered, claimed, width)


class _Law:
    """Laws p (positions, V) of one cell on counts `values`, which never decrease."""

    def __init__(self, p: Float[np.ndarray, "positions V"], values: Integer[np.ndarray, " V"]):
        self.values = values
        cumulative = p.cumsum(axis=1)
        self.cumulative = cumulative / cumulative[:, -1:]

    def up_to(self, counts: Integer[np.ndarray, " positions"]) -> Float[np.ndarray, " positions"]:
        """P(count <= counts): 0 below 0."""
        number = np.searchsorted(self.values, counts, side="right")
        inside = np.take_along_axis(self.cumulative, np.maximum(number - 1, 0)[:, None], axis=1)[:, 0]
        return np.where(number > 0, inside, 0)

    def quantile(self, u: float) -> Integer[np.ndarray, " positions"]:
        """The smallest count of which the distribution function is u or more."""
        return self.values[(self.cumulative < u - 1e-6).sum(axis=1)]


def pit_mass(
    below: Float[np.ndarray, " positions"], up_to: Float[np.ndarray, " positions"]
) -> Float[np.ndarray, "positions bins"]:
    """Mass in each of PIT_BINS equal bins of a uniform law on [below, up_to]; all in one where these are equal."""
    edges = np.arange(PIT_BINS + 1) / PIT_BINS
    width = np.maximum(up_to - below, 1e-7)
    share = np.clip((edges - below[:, None]) / width[:, None], 0, 1)
    share[:, -1] = 1  # also where both are 1: a count beyond all that the law holds possible
    return np.diff(share, axis=1)
