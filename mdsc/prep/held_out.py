"""Which split a cell is of: a column says so, or values of columns are held out, and a share of all cells by name.

Of a share, a cell's own name decides (a keyed hash), not its place: other files, another order or a larger share leave
what is held out as it was. Names are taken without the file's: a cell keeps its split when it gets a neighbour.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

KEY = b"mdsc held out"
NUM_SHOWN = 5


@dataclass(frozen=True)
class SplitRule:
    """A column says it of every cell; or a cell is of split "heldout" if the share or any of the values says so."""

    column: str | None = None
    """Column of obs that names each cell's split."""
    fraction: float | None = None
    """Share of cells that are of split "heldout"."""
    by: tuple[tuple[str, ...], ...] = ()
    """Columns of obs, each with the values whose cells are of split "heldout"."""

    def __post_init__(self) -> None:
        held_out = [flag for flag, value in (("fraction", self.fraction), ("by", self.by or None)) if value is not None]
        if self.column is not None and held_out:
            raise UserError(
                f"--split-column and --heldout-{held_out[0]} both say which cells are held out: give one of them"
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise UserError(f"--heldout-fraction {self.fraction} is no share between 0 and 1, e.g. 0.1")
        for part in self.by:
            if len(part) < 2:
                given = " ".join(("--heldout-by", *part))
                raise UserError(f"{given} lacks values: give a column and its values, e.g. donor d3")

    @property
    def columns(self) -> dict[str, str]:
        """Column of obs that is needed -> the flag that needs it."""
        found = {} if self.column is None else {self.column: "--split-column"}
        return found | {column: "--heldout-by" for column, *_ in self.by}

    def splits(self, obs: "pd.DataFrame") -> np.ndarray:
        """(cells,) of str."""
        if self.column is not None:
            return obs[self.column].astype(str).to_numpy(dtype=object)
        is_heldout = self.has_value(obs)
        if self.fraction is not None:
            is_heldout |= np.array([name_hash(str(name)) < self.fraction for name in obs.index], dtype=bool)
        return np.where(is_heldout, "heldout", "train").astype(object)

    def has_value(self, obs: "pd.DataFrame") -> Bool[np.ndarray, " cells"]:
        """Which cells are held out by a value."""
        found = np.zeros(len(obs), dtype=bool)
        for column, *values in self.by:
            found |= obs[column].astype(str).isin(values).to_numpy()
        return found


class SplitCheck:
    """Finds, before anything is written, that the columns of all files leave no cell to train on, or hold out none."""

    def __init__(self, rule: SplitRule) -> None:
        self.rule = rule
        self._values: dict[str, dict[str, None]] = {column: {} for column in rule.columns}
        self._num_left = 0

    def add(self, obs: "pd.DataFrame", name: str) -> None:
        """Look at a file, whose columns are known to be there."""
        for column, seen in self._values.items():
            values = obs[column]
            if column == self.rule.column and values.isna().any():
                raise UserError(f"{name}: column {column!r} (--split-column) has no value for some cells")
            seen.update(dict.fromkeys(values.dropna().astype(str).unique().tolist()))
            if values.isna().any():
                seen[""] = None
        self._num_left += int((~self.rule.has_value(obs)).sum())

    def finish(self) -> None:
        column = self.rule.column
        if column is not None and "train" not in self._values[column]:
            told = listed(self._values[column])
            raise UserError(f"no cell is of split 'train': column {column!r} (--split-column) has {told}")
        for column, *wanted in self.rule.by:
            for value in wanted:
                if value not in self._values[column]:
                    told = listed(self._values[column])
                    raise UserError(f"no cell has {value!r} in column {column!r} (--heldout-by): it has {told}")
        if self.rule.by and not self._num_left:
            columns = ", ".join(dict.fromkeys(column for column, *_ in self.rule.by))
            raise UserError(f"--heldout-by {columns} holds out every cell: leave some values for training")


def listed(values: Iterable[str]) -> str:
    """The first few."""
    values = list(values)
    more = f", and {len(values) - NUM_SHOWN:,} more" if len(values) > NUM_SHOWN else ""
    return ", ".join(map(repr, values[:NUM_SHOWN])) + more


def name_hash(name: str) -> float:
    """A number in [0, 1) that is a pure function of a cell's name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, key=KEY).digest(), "little") / 2**64


def check_columns(name: str, known: Sequence[str], conditions: Sequence[str], rule: SplitRule) -> None:
    """A `UserError` names the first column that a flag needs and the file lacks."""
    wanted = [("--condition-columns", column) for column in conditions]
    for flag, column in [*wanted, *((flag, column) for column, flag in rule.columns.items())]:
        if column not in known:
            raise UserError(f"{name} has no column {column!r} in obs ({flag}): it has {', '.join(known) or 'none'}")
