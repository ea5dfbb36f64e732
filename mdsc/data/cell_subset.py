"""Some cells of a folder of shards: of a split, with given conditions, a random number of them; read group by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from mdsc.data.keyed_streams import Purpose, permutation, stream, uniforms
from mdsc.data.row_groups import RowGroup, RowGroupRef
from mdsc.data.shards import ShardFolder
from mdsc.data.validation_split import address_hash
from mdsc.errors import UserError

NUM_SHOWN = 5


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """Cells of one row group, in its order."""

    split: str
    ref: RowGroupRef
    rows: Int64[np.ndarray, " chosen"]


def choose_cells(
    folder: ShardFolder,
    split: str | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    max_cells: int | None = None,
    *,
    first: bool = False,
    seed: int = 0,
) -> list[ChosenRows]:
    """Cells of `split` (None: all) that have one of the given values in each column of `where`.

    Of more than `max_cells`, a random choice that is spread evenly over the row groups is taken, or the first ones.
    A `UserError` tells of an unknown split, column or value, and of a choice without cells. Without `where` no cell is
    read.
    """
    refs = [(name, ref) for name in ([split] if split else folder.splits) for ref in folder.row_groups(name)]
    chosen = _matching(folder, refs, where) if where else [_all_rows(name, ref) for name, ref in refs]
    total = sum(len(found.rows) for found in chosen)
    if not total:
        what = "no cell that has all of this together (--where)" if where else "no cells"
        raise UserError(f"{folder.path} has {what}")
    if max_cells is None or total <= max_cells:
        return [found for found in chosen if len(found.rows)]
    before = np.cumsum([0] + [len(found.rows) for found in chosen])
    if first:
        shares = np.diff(np.minimum(before, max_cells))
    else:
        # Systematic sampling: each group gives its exact share, rounded up or down by one common uniform number.
        luck = uniforms(stream(Purpose.SUBSET, seed), 1)[0]
        # Whole numbers are compared, because max_cells * total may not be rounded.
        shares = np.diff([(max_cells * int(number) + int(luck * total)) // total for number in before])
    taken = []
    for found, share in zip(chosen, shares.tolist(), strict=True):
        rows = found.rows
        if not first:
            order = permutation(stream(Purpose.SUBSET, seed, address_hash(found.ref)[0]), len(rows))
            rows = rows[np.sort(order[:share])]
        if share:
            taken.append(ChosenRows(found.split, found.ref, rows[:share]))
    return taken


def read_chosen(folder: ShardFolder, found: ChosenRows) -> RowGroup:
    """These cells alone."""
    group = folder.read(found.ref)
    return group if len(found.rows) == found.ref.rows else group.select(found.rows)


def _all_rows(split: str, ref: RowGroupRef) -> ChosenRows:
    return ChosenRows(split, ref, np.arange(ref.rows))


def _matching(
    folder: ShardFolder, refs: Sequence[tuple[str, RowGroupRef]], where: Mapping[str, Sequence[str]]
) -> list[ChosenRows]:
    known = folder.condition_columns
    for name in where:
        if name not in known:
            raise UserError(f"{folder.path} has no condition column {name!r} (--where): it has {_listed(known)}")
    found, seen = [], {name: set() for name in where}
    for split, ref in refs:
        is_chosen = np.ones(ref.rows, dtype=bool)
        for name, column in folder.read_conditions(ref, tuple(where)).items():
            seen[name].update(column.tolist())
            is_chosen &= np.isin(column, where[name])
        found.append(ChosenRows(split, ref, np.flatnonzero(is_chosen)))
    for name, values in where.items():
        for value in values:
            if value not in seen[name]:
                raise UserError(f"no cell has {name}={value} (--where): {name} is {_listed(sorted(seen[name]))}")
    return found


def _listed(values: Sequence[str]) -> str:
    more = f", and {len(values) - NUM_SHOWN:,} more" if len(values) > NUM_SHOWN else ""
    return (", ".join(map(repr, values[:NUM_SHOWN])) + more) or "none"
