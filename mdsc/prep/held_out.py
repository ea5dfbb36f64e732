"""Which split a cell is of: a column says so, or a value of a column is held out, or a share of all cells by name.

Of a share, a cell's own name decides (a keyed hash), not its place: other files, another order or a larger share leave
what is held out as it was. Names are taken without the file's: a cell keeps its split when it gets a neighbour.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

KEY = b"mdsc held out"
NUM_SHOWN = 5


@dataclass(frozen=True)
class SplitRule:
    """At most one of three is given; else every cell is of split "train"."""

    column: str | None = None
    """Column of obs that names each cell's split."""
    fraction: float | None = None
    """Share of cells that are of split "heldout"."""
    by: tuple[str, ...] = ()
    """A column of obs and the values whose cells are of split "heldout"."""

    def __post_init__(self) -> None:
        flags = {"--split-column": self.column, "--heldout-fraction": self.fraction, "--heldout-by": self.by}
        given = [flag for flag, value in flags.items() if value not in (None, ())]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} both say which cells are held out: give one of them")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise UserError(f"--heldout-fraction {self.fraction} is no share between 0 and 1, e.g. 0.1")
        if len(self.by) == 1:
            raise UserError(f"--heldout-by {self.by[0]} lacks values: give a column and its values, e.g. donor d3")

    @property
    def columns(self) -> dict[str, str]:
        """Flag -> the column of obs that it needs."""
        found = {"--split-column": self.column, "--heldout-by": self.by[0] if self.by else None}
        return {flag: column for flag, column in found.items() if column is not None}

    def splits(self, obs: "pd.DataFrame") -> np.ndarray:
        """(cells,) of str."""
        if self.column is not None:
            return obs[self.column].astype(str).to_numpy(dtype=object)
        is_heldout = np.zeros(len(obs), dtype=bool)
        if self.by:
            is_heldout = obs[self.by[0]].astype(str).isin(self.by[1:]).to_numpy()
        elif self.fraction is not None:
            is_heldout = np.array([name_hash(str(name)) < self.fraction for name in obs.index], dtype=bool)
        return np.where(is_heldout, "heldout", "train").astype(object)


class SplitCheck:
    """Finds, before anything is written, that the columns of all files leave no cell to train on, or hold out none."""

    def __init__(self, rule: SplitRule) -> None:
        self.rule = rule
        self._values: dict[str, None] = {}

    def add(self, obs: "pd.DataFrame", name: str) -> None:
        """Look at a file, whose columns are known to be there."""
        for flag, column in self.rule.columns.items():
            values = obs[column]
            if flag == "--split-column" and values.isna().any():
                raise UserError(f"{name}: column {column!r} (--split-column) has no value for some cells")
            self._values.update(dict.fromkeys(values.dropna().astype(str).unique().tolist()))
            if values.isna().any():
                self._values[""] = None

    def finish(self) -> None:
        values = list(self._values)
        if self.rule.column is not None and "train" not in values:
            raise UserError(
                f"no cell is of split 'train': column {self.rule.column!r} (--split-column) has {listed(values)}"
            )
        if self.rule.by:
            column, *wanted = self.rule.by
            for value in wanted:
                if value not in values:
                    raise UserError(
                        f"no cell has {value!r} in column {column!r} (--heldout-by): it has {listed(values)}"
                    )
            if set(values) <= set(wanted):
                raise UserError(f"--heldout-by {column} holds out every cell: leave some values for training")


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
    for flag, column in [*wanted, *rule.columns.items()]:
        if column not in known:
            raise UserError(f"{name} has no column {column!r} in obs ({flag}): it has {', '.join(known) or 'none'}")
