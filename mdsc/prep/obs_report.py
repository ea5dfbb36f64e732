"""What a person should know of cells' names and conditions before a preparation: found in obs, told a line each."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

# A condition with more values than this share of the cells is most likely a name or a number of each cell.
MANY_VALUES = 0.5


class ObsReport:
    """Looks at the obs of each file; `lines` tells of all."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._values: dict[str, set[str]] = {column: set() for column in columns}
        self._num_empty = dict.fromkeys(columns, 0)
        self._num_cells = 0
        self._lines: list[str] = []

    def add(self, obs: "pd.DataFrame", name: str) -> None:
        """Look at a file, whose columns are known to be there."""
        self._num_cells += len(obs)
        if repeated := int(obs.index.duplicated().sum()):
            self._lines.append(f"note: {name}: {repeated:,} cells have a name that another cell before them has")
        for column, seen in self._values.items():
            values = obs[column]
            self._num_empty[column] += int((values.isna() | (values.astype(str) == "")).sum())
            seen.update(values.dropna().astype(str).unique())

    def lines(self) -> list[str]:
        found = list(self._lines)
        for column, seen in self._values.items():
            if number := self._num_empty[column]:
                found.append(f"note: {number:,} of {self._num_cells:,} cells have no value of {column}: it is unknown")
            if len(seen) > max(1, MANY_VALUES * self._num_cells):
                found.append(
                    f"warning: {column} has {len(seen):,} values for {self._num_cells:,} cells, too many for a "
                    "condition (--condition-columns): a model learns each value by its cells"
                )
        return found


def prefixes(paths: Sequence[Path]) -> list[str]:
    """What is put before the names of each file's cells: nothing of one file, else its name, with its folder's if
    several files are called alike."""
    if twice := [path for path, times in Counter(path.resolve() for path in paths).items() if times > 1]:
        raise UserError(f"{twice[0]} is given twice: its cells would be there twice")
    if len(paths) == 1:
        return [""]
    times = Counter(path.stem for path in paths)
    names = [path.stem if times[path.stem] == 1 else f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    unique: list[str] = []
    for name in names:
        choices = (name, *(f"{name}-{number}" for number in range(2, len(paths) + 2)))
        unique.append(next(choice for choice in choices if choice not in unique))
    return [f"{name}:" for name in unique]
