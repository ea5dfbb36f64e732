"""The levels of categorical conditions: the model's embedding has a row for each, and row 0 for unknown."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from mdsc.data.shards import REPAIR, ShardFolder
from mdsc.errors import UserError


def condition_levels(folder: ShardFolder, columns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sorted levels of each column over the train split; empty strings are no level but unknown.

    Reads these columns alone, a shard at a time.
    """
    columns = list(columns)
    for column in columns:
        if column not in folder.condition_columns:
            known = ", ".join(folder.condition_columns) or "none"
            raise UserError(
                f"--data.condition-columns: {folder.path} has no column {column!r} (it has: {known}).\n"
                "Prepare the shards again with this column, or leave it out."
            )
    found: dict[str, set[str]] = {column: set() for column in columns}
    files = dict.fromkeys(ref.file for ref in folder.row_groups("train")) if columns else ()
    for file in files:
        try:
            table = pq.read_table(folder.path / file, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{folder.path / file} cannot be read ({str(error).splitlines()[0]}); {REPAIR}") from error
        for column in columns:
            found[column].update(pc.unique(table[column]).to_pylist())
    return {column: tuple(sorted(levels - {"", None})) for column, levels in found.items()}


def level_ids(labels: Iterable[str], levels: Sequence[str]) -> Int64[np.ndarray, " cells"]:
    """Labels as rows of the model's embedding: 1.. in the order of its levels, 0 for what it does not know."""
    id_of = {level: number for number, level in enumerate(levels, start=1)}
    return np.array([id_of.get(label, 0) for label in labels], dtype=np.int64)
