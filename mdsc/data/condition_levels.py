"""The levels of categorical conditions: the model's embedding has a row for each, and row 0 for unknown."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from mdsc.data.level_features import FittedFeatures, feature_files, fit_features, read_features
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


def condition_features(
    files: Iterable[str], levels: Mapping[str, Sequence[str]], say: Callable[[str], None]
) -> dict[str, FittedFeatures]:
    """The features of `--data.condition-features` fitted to the levels of their columns; `say` tells who lacks them."""
    flag, fitted = "--data.condition-features", {}
    for column, path in feature_files(files, flag).items():
        if column not in levels:
            known = near_names(column, levels) if levels else "none is given"
            raise UserError(f"{flag} {column}={path}: {column!r} is none of --data.condition-columns; {known}.")
        fitted[column] = fit_features(read_features(path), levels[column], column)
        known = set(fitted[column].names)
        if without := [level for level in levels[column] if level not in known]:
            more = ", ..." if len(without) > 3 else ""
            say(
                f"{path} has no features of {len(without):,} of the {len(levels[column]):,} levels of {column} "
                f"({', '.join(without[:3])}{more}): they are told by name alone"
            )
    return fitted


def near_names(wanted: str, options: Iterable[str], otherwise: str = "it knows") -> str:
    """Names near `wanted`, or the first ones, as an error tells them."""
    options = list(options)
    by_folded = {option.casefold(): option for option in options}
    near = [by_folded[name] for name in difflib.get_close_matches(wanted.casefold(), by_folded, n=3, cutoff=0.5)]
    if near:
        return f"perhaps you meant {' or '.join(near)}"
    more = f" and {len(options) - 5:,} more" if len(options) > 5 else ""
    return f"{otherwise} {', '.join(options[:5]) or 'none'}{more}"
