"""Which of Tahoe-100M's cells are held out: some of all cells, and all cells of some plates, drugs, lines or doses."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool

from mdsc.errors import UserError
from mdsc.prep.tahoe_metadata import SideTables

KEY = b"mdsc heldout cells"
COLUMNS = ("plate", "drug", "cell_line", "dose", "cell_line_id", "sample")


@dataclass(frozen=True)
class HeldoutRule:
    """A cell is held out if any of these holds it out."""

    fraction: float = 0.0
    """Share of all cells, by a hash of the cell's id: the same cells in whatever file or row they are."""
    by: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Columns of the files, and values of each that are held out whole."""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for column, _ in self.by)

    def rows(self, cell_ids: np.ndarray, text: Mapping[str, np.ndarray]) -> Bool[np.ndarray, " rows"]:
        """Which of some cells are held out; `text` has the columns, (rows,) of str each."""
        held_out = np.zeros(len(cell_ids), dtype=bool)
        if self.fraction:
            held_out |= np.array([id_share(name) for name in cell_ids]) < self.fraction
        for column, values in self.by:
            # Names in the files may have blanks at their ends ("Erdafitinib "), which nobody would type.
            found = {value for value in set(text[column].tolist()) if value in values or value.strip() in values}
            held_out |= np.array([value in found for value in text[column]], dtype=bool)
        return held_out


def id_share(cell_id: str) -> float:
    """A uniform number in [0, 1) that belongs to a cell's id."""
    return int.from_bytes(blake2b(cell_id.encode(), key=KEY, digest_size=8).digest(), "little") / 2**64


def heldout_rule(fraction: float, by: Sequence[Sequence[str]], tables: SideTables) -> HeldoutRule:
    """The rule of --heldout-fraction and --heldout-by, in columns of the files; every value must be a known one."""
    if not 0 <= fraction < 1:
        raise UserError(f"--heldout-fraction {fraction}: give a share from 0 to below 1")
    parts = []
    for column, *values in (part or ("",) for part in by):
        if not column:
            raise UserError("--heldout-by: give a column and one or more values, e.g. drug Selinexor")
        if column not in COLUMNS:
            raise UserError(f"--heldout-by {column}: cells can be held out by {', '.join(COLUMNS)}")
        if not values:
            raise UserError(f"--heldout-by {column}: give one or more values after the column")
        parts.append(_in_columns_of_the_files(column, tuple(values), tables))
    return HeldoutRule(fraction, tuple(parts))


def values_without_cells(
    by: Sequence[Sequence[str]], tables: SideTables, found: Mapping[str, Collection[str]]
) -> list[str]:
    """Values of --heldout-by, as `column value`, that no cell has; `found`: what stands in the columns of the files."""
    stripped = {column: {value.strip() for value in values} for column, values in found.items()}
    without = []
    for column, *values in by:
        for value in values:
            own, wanted = _in_columns_of_the_files(column, (value,), tables)
            if stripped[own].isdisjoint(name.strip() for name in wanted):
                without.append(f"{column} {value}")
    return without


def _in_columns_of_the_files(column: str, values: tuple[str, ...], tables: SideTables) -> tuple[str, tuple[str, ...]]:
    if column == "dose":
        doses = tables.doses()
        _check(column, values, set(doses.values()))
        return "sample", tuple(sample for sample, dose in doses.items() if dose in values)
    if column in ("cell_line", "cell_line_id"):
        names = tables.cell_lines()
        _check(column, values, set(names.values() if column == "cell_line" else names))
        # A file that has names where it should have ids is read as well.
        return "cell_line_id", (*values, *(cellosaurus for cellosaurus, name in names.items() if name in values))
    _check(column, values, {value.strip() for value in tables.read("sample_metadata", (column,))[column]})
    return column, values


def _check(column: str, values: Sequence[str], known: set[str]) -> None:
    for value in values:
        if value.strip() not in known:
            near = difflib.get_close_matches(value, sorted(known), n=3, cutoff=0.5) or sorted(known)[:5]
            raise UserError(
                f"--heldout-by {column}: Tahoe's metadata has no {column} {value!r}; near: {', '.join(near)}"
            )
