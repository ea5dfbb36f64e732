"""The levels of categorical conditions: the model's embedding has a row for each, and row 0 for unknown."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError


def condition_levels(folder: ShardFolder, columns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sorted levels of each column over the train split, as its manifest has them; a `UserError` for no column."""
    for column in (columns := list(columns)):
        if column not in folder.condition_columns:
            known = ", ".join(folder.condition_columns) or "none"
            raise UserError(
                f"--data.condition-columns: {folder.path} has no column {column!r} (it has: {known}).\n"
                "Prepare the shards again with this column, or leave it out."
            )
    return {column: folder.manifest.conditions[column] for column in columns}


def level_ids(labels: Iterable[str], levels: Sequence[str]) -> Int64[np.ndarray, " cells"]:
    """Labels as rows of the model's embedding: 1.. in the order of its levels, 0 for what it does not know."""
    id_of = {level: number for number, level in enumerate(levels, start=1)}
    return np.array([id_of.get(label, 0) for label in labels], dtype=np.int64)
