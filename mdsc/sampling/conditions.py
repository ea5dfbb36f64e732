"""Conditions of cells, as a user names them, to the ids of the levels that the model knows."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from mdsc.data.condition_levels import level_ids
from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Levels = Mapping[str, Sequence[str]]
"""Levels of each categorical condition of a model; a level's id is its place + 1, and 0 is unknown."""


def condition_pairs(texts: Iterable[str]) -> dict[str, str]:
    """["drug=DMSO_TF"] -> {"drug": "DMSO_TF"}."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, level = text.partition("=")
        if not (name and equals and level):
            raise UserError(f"--condition {text}: write it as NAME=LEVEL, e.g. drug=DMSO_TF.")
        if name in pairs:
            raise UserError(f"--condition gives {name} twice ({pairs[name]} and {level}); keep one.")
        pairs[name] = level
    return pairs


def given_ids(levels: Levels, given: Mapping[str, str]) -> dict[str, int]:
    """Ids of conditions that a user asks for; a `UserError` lists near names for what the model does not know."""
    ids = {}
    for name, level in given.items():
        if name not in levels:
            known = f"it knows {_some(name, levels)}" if levels else "it was trained without any"
            raise UserError(f"--condition {name}={level}: the model has no condition {name!r}; {known}.")
        if level not in levels[name]:
            raise UserError(f"--condition {name}={level}: the model knows no such level; {_some(level, levels[name])}.")
        ids[name] = levels[name].index(level) + 1
    return ids


def cells_ids(
    levels: Levels, obs: "pd.DataFrame", given: Mapping[str, str], say: Callable[[str], None]
) -> dict[str, Int64[np.ndarray, " cells"]]:
    """Ids of every condition of every cell: what is given for all of them, else the column of obs of that name.

    Missing values, empty strings and levels that the model does not know are unknown (0), and told.
    """
    ids = {name: np.full(len(obs), number) for name, number in given_ids(levels, given).items()}
    for name in levels:
        if name in ids or name not in obs:
            continue
        column = obs[name]
        text = np.where(column.isna(), "", column.astype(str)).astype(object)
        ids[name] = level_ids(text, levels[name])
        say(f"--condition {name} is not given: taking obs[{name!r}]")
        if unknown := sorted(set(text[ids[name] == 0]) - {""}):
            cells = int(np.isin(text, unknown).sum())
            more = ", ..." if len(unknown) > 3 else ""
            say(
                f"obs[{name!r}] of {cells:,} cells is unknown to the model ({', '.join(unknown[:3])}{more}): "
                f"they are taken as cells without {name}; it knows {_some(unknown[0], levels[name])}"
            )
        if missing := int((text == "").sum()):
            say(f"obs[{name!r}] of {missing:,} cells is missing: they are taken as cells without {name}")
    return ids


def _some(wanted: str, options: Iterable[str]) -> str:
    """Names near `wanted`, or the first ones."""
    options = list(options)
    by_folded = {option.casefold(): option for option in options}
    near = [by_folded[name] for name in difflib.get_close_matches(wanted.casefold(), by_folded, n=3, cutoff=0.5)]
    if near:
        return f"perhaps you meant {' or '.join(near)}"
    return ", ".join(options[:5]) + (f" and {len(options) - 5:,} more" if len(options) > 5 else "")
