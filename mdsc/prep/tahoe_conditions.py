"""Conditions of Tahoe-100M's cells: columns of the files, and what follows from them by the side tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mdsc.data.manifest import Lookup
from mdsc.errors import UserError
from mdsc.prep.tahoe_metadata import SideTables, stripped

IN_THE_FILES = ("drug", "plate", "sample", "cell_line_id", "moa-fine", "canonical_smiles", "pubchem_cid")
FOLLOWING = {"cell_line": "cell_line_id", "dose": "sample"}
"""Conditions that the files do not have, each with the column that it follows from."""

Values = Mapping[str, Mapping[str, tuple[int, int]]]
"""For each column of the files, how many training and held-out cells have each value."""


@dataclass(frozen=True)
class Conditions:
    """What the manifest says of conditions."""

    levels: dict[str, tuple[str, ...]]
    lookups: dict[str, Lookup]
    notes: tuple[str, ...]
    """Lines for the user."""


@dataclass(frozen=True)
class ConditionSources:
    """Where each condition comes from; made before the files are read, so that what is missing is told early."""

    names: tuple[str, ...]
    tables: Mapping[str, Mapping[str, str]]
    """Of conditions that follow from a column: the condition of each of its values."""

    @classmethod
    def of(cls, names: Sequence[str], tables: SideTables) -> "ConditionSources":
        known = (*IN_THE_FILES, *FOLLOWING)
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"--condition-columns: Tahoe has no {', '.join(unknown)}; it has {', '.join(known)}")
        read = {"cell_line": tables.cell_lines, "dose": tables.doses}
        return cls(tuple(dict.fromkeys(names)), {name: read[name]() for name in names if name in FOLLOWING})

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the files that are needed."""
        return tuple(dict.fromkeys(FOLLOWING.get(name, name) for name in self.names))

    def resolve(self, values: Values) -> Conditions:
        """Levels of the training cells, and a lookup where the condition is not what stands in the files."""
        levels, lookups, notes = {}, {}, []
        for name in self.names:
            column = FOLLOWING.get(name, name)
            found = values[column]
            mapping = self._mapping(name, sorted(found))
            if mapping:
                lookups[name] = Lookup(column=column, values=mapping)
            present = {mapping.get(value, "") if mapping else value for value, (train, _) in found.items() if train}
            levels[name] = tuple(sorted(present - {""}))
            unknown = {value: sum(n) for value, n in found.items() if not (mapping.get(value) if mapping else value)}
            if unknown:
                few = ", ".join(repr(value) for value in list(unknown)[:3])
                notes.append(
                    f"note: {sum(unknown.values()):,} cells are of unknown {name} ({column} {few} "
                    f"is not in the metadata)"
                )
        return Conditions(levels, lookups, tuple(notes))

    def _mapping(self, name: str, found: Sequence[str]) -> dict[str, str]:
        """Condition of each value of the column, of those that were found; empty where they are the same."""
        if name == "drug":
            return dict(stripped(found))
        if name == "cell_line":
            # An id that the table lacks is still a name, and so is what is no id.
            names = self.tables[name]
            return {value: names.get(value, value) for value in found}
        if name == "dose":
            return {value: self.tables[name][value] for value in found if value in self.tables[name]}
        return {}
