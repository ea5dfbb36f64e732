"""What of the conditions a cell is told in a step of training, so that the model learns to do without.

A function of (seed, step, place of the cell in the global batch): the same on any number of processes. Validation tells
all. Nothing else of a cell changes.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdsc.config.schema import OptimConfig
from mdsc.data.batch import CellBatch
from mdsc.diffusion.keyed_random import Stream, keyed_uniform

ALL = 0
"""Key of what drops every condition; columns have two more each, in the order of their names."""


def drop_conditions(
    cells: CellBatch,
    vectors: Mapping[str, Float[Tensor, "batch _"]],
    options: OptimConfig,
    *,
    seed: int,
    step: int,
) -> CellBatch:
    """The cells with some of their conditions unknown: category 0, and a vector of NaN.

    vectors: of the cells' levels (`Conditions.vectors_of`); NaN where a cell has none.

    With chance condition_dropout a cell loses all of them, as guidance needs (Ho & Salimans 2022, arXiv 2207.12598).
    Where there are several columns, each is lost with chance column_dropout. Where a level has a vector, it is lost
    with chance level_dropout and leaves the vector, which is all that a level without training cells has.
    """
    columns = sorted(cells.categories.keys() | vectors.keys())
    if not columns:
        return cells

    def is_dropped(what: int, share: float) -> Bool[Tensor, " batch"]:
        return keyed_uniform(Stream.CONDITION, seed, step, what, cells.cell_index) < share

    categories: dict[str, Int[Tensor, " batch"]] = {}
    told: dict[str, Float[Tensor, "batch _"]] = {}
    loses_all = is_dropped(ALL, options.condition_dropout)
    for number, name in enumerate(columns):
        loses_column = loses_all
        if len(columns) > 1:
            loses_column = loses_all | is_dropped(2 * number + 1, options.column_dropout)
        loses_level = loses_column
        if name in vectors:
            has_vector = ~vectors[name].isnan().any(dim=-1)
            loses_level = loses_column | (has_vector & is_dropped(2 * number + 2, options.level_dropout))
            told[name] = vectors[name].masked_fill(loses_column[:, None], torch.nan)
        if name in cells.categories:
            categories[name] = cells.categories[name].masked_fill(loses_level, 0)
    return replace(cells, categories=categories, vectors=told)
