"""Units, which metrics have one value of each: a context and a perturbation; and how a file's columns tell them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mdsc.data.condition_levels import near_names
from mdsc.data.perturbations import COLUMN, CONTROL, canonical
from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

NO_CONTEXT = ""


@dataclass(frozen=True, order=True)
class Unit:
    """What one metric has one value of."""

    context: str
    """Cell type, cell line, ...; "" where there is one context."""
    perturbation: str

    def __str__(self) -> str:
        return f"{self.context}: {self.perturbation}" if self.context else self.perturbation


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which columns of obs tell a cell's unit, and what the control is called there."""

    perturbation_column: str = COLUMN
    control_label: str = CONTROL
    context_column: str | None = None

    def read(self, obs: "pd.DataFrame", name: str) -> tuple[np.ndarray, np.ndarray]:
        """(cells,) perturbations by canonical names, controls as `ctrl`; (cells,) contexts."""
        written = self._column(obs, self.perturbation_column, "--perturbation-column", name)
        names = {label: CONTROL if label == self.control_label else canonical(label) for label in np.unique(written)}
        perturbation = np.array([names[label] for label in written], dtype=object)
        if self.context_column is None:
            return perturbation, np.full(len(obs), NO_CONTEXT, dtype=object)
        return perturbation, self._column(obs, self.context_column, "--context-column", name)

    @staticmethod
    def _column(obs: "pd.DataFrame", column: str, flag: str, name: str) -> np.ndarray:
        if column not in obs:
            raise UserError(f"{flag}: {name} has no column obs[{column!r}]; {near_names(column, obs, 'it has')}.")
        if obs[column].isna().any():
            raise UserError(f"{flag}: {name} has {int(obs[column].isna().sum())} cells without a value in {column!r}.")
        return obs[column].astype(str).to_numpy(dtype=object)
