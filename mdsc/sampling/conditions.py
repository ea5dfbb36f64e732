"""Conditions of cells, as a user names them, to what the model is told: ids of levels, vectors of their features."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mdsc.config.flags import named_values
from mdsc.data.condition_levels import level_ids, near_names
from mdsc.data.level_features import LevelFeatures, read_features
from mdsc.errors import UserError
from mdsc.model.modeling import MdscModel
from mdsc.sampling.guidance import check_guidance

if TYPE_CHECKING:
    import pandas as pd

Features = Mapping[str, str | Path | LevelFeatures]
"""Of further levels of condition columns: files, or what is in them."""


def condition_pairs(texts: Iterable[str], flag: str = "--condition") -> dict[str, str]:
    """["drug=DMSO_TF"] -> {"drug": "DMSO_TF"}."""
    return named_values(texts, flag, "NAME=LEVEL, e.g. drug=DMSO_TF")


@dataclass(frozen=True, eq=False)
class ConditionRequest:
    """What a user asks for."""

    condition: Mapping[str, str]
    """Level of each condition, the same for all cells."""
    features: Features
    guidance: float = 1.0
    seen_under: Mapping[str, str] = field(default_factory=dict)
    """Levels under which the visible counts of all cells were seen, where these are others."""

    def __post_init__(self) -> None:
        check_guidance(self.guidance)

    def check_guidance(self, known: "KnownConditions", told: "CellConditions") -> None:
        """UserError where guidance has nothing to work on."""
        if self.guidance == 1:
            return
        if not known.names:
            raise UserError(f"--guidance {self.guidance:g}: the model was trained without conditions; leave it out.")
        if not told.names:
            raise UserError(
                f"--guidance {self.guidance:g} follows conditions, and none is given: give --condition NAME=LEVEL "
                f"(the model knows {', '.join(known.names)})."
            )


@dataclass(frozen=True, eq=False)
class CellConditions:
    """What is known of some cells; a few bytes for each, whatever the length of the vectors."""

    labels: dict[str, np.ndarray]
    """(cells,) of str each, as they were given; "" where nothing is."""
    level_ids: dict[str, Int64[np.ndarray, " cells"]]
    """0 where a level has no embedding: it is unknown, or has features alone."""
    vector_rows: dict[str, Int64[np.ndarray, " cells"]]
    """Row of each cell in `vectors`; -1 for none."""
    vectors: dict[str, Float[Tensor, "rows _"]]

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that some cell has."""
        with_any = [name for name, ids in self.level_ids.items() if ids.any()]
        with_any += [name for name, rows in self.vector_rows.items() if (rows >= 0).any()]
        return tuple(dict.fromkeys(with_any))

    def digest(self) -> str:
        """SHA-256 of all that a model is told, in hex."""
        found = hashlib.sha256()
        for name in sorted(self.labels):
            found.update(name.encode() + self.level_ids[name].tobytes())
            if name in self.vector_rows:
                found.update(self.vector_rows[name].tobytes() + self.vectors[name].numpy().tobytes())
        return found.hexdigest()

    def block(self, rows: slice, device: torch.device | str = "cpu") -> dict[str, dict[str, Tensor]]:
        """`categories` and `vectors` of some cells, as `Evidence` and `generate` take them."""
        vectors = {}
        for name, row_of in self.vector_rows.items():
            row = torch.from_numpy(row_of[rows])
            table = self.vectors[name]
            vectors[name] = torch.where((row >= 0)[:, None], table[row.clamp(min=0)], torch.nan).to(device)
        categories = {name: torch.from_numpy(ids[rows]).to(device) for name, ids in self.level_ids.items()}
        return {"categories": categories, "vectors": vectors}


class KnownConditions:
    """The conditions that a model knows, by its training cells and by features."""

    def __init__(self, model: MdscModel, features: Features | None = None):
        """features: of levels that the model has none for; what it has is kept. UserError where they do not fit."""
        self.levels = {name: list(levels) for name, levels in (model.config.condition_levels or {}).items()}
        self.vectors: dict[str, Tensor] = {}
        self.row_of: dict[str, dict[str, int]] = {}
        self._mean: dict[str, Tensor] = {}
        for name in model.conditions.table_names:
            table = model.conditions.table(name)
            self.vectors[name] = table.vectors.detach().cpu()
            self.row_of[name] = {known: row for row, known in enumerate(table.names)}
            self._mean[name] = (table.mean @ table.basis).detach().cpu()
        for name, given in (features or {}).items():
            self._add(model, name, given if isinstance(given, LevelFeatures) else read_features(given))

    def _add(self, model: MdscModel, name: str, features: LevelFeatures) -> None:
        flag = f"--condition-features {name}={features.source}"
        if (table := model.conditions.table(name)) is None:
            known = near_names(name, self.row_of) if self.row_of else "it was trained without any"
            raise UserError(f"{flag}: the model knows no features of {name!r}; {known} (--data.condition-features).")
        if features.values.shape[1] != len(table.mean):
            raise UserError(
                f"{flag} has {features.values.shape[1]:,} features of each name, and the model was trained with "
                f"{len(table.mean):,}: make it as the other file was made."
            )
        row_of = self.row_of[name]
        new = [row for row, known in enumerate(features.names) if known not in row_of]
        row_of |= {features.names[row]: len(row_of) + place for place, row in enumerate(new)}
        vectors = table.reduced(torch.from_numpy(features.values[new]).to(table.mean.device)).cpu()
        self.vectors[name] = torch.cat([self.vectors[name], vectors])

    def add_sum(self, column: str, name: str, parts: Sequence[str]) -> None:
        """A level whose features are the sum of those of others; of no others: features that are 0.

        Vectors are features less their mean, which a sum of them would take away more than once.
        """
        rows = [self.row_of[column][part] for part in parts]
        vector = self.vectors[column][rows].sum(dim=0) + (len(parts) - 1) * self._mean[column]
        self.row_of[column][name] = len(self.vectors[column])
        self.vectors[column] = torch.cat([self.vectors[column], vector[None]])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.levels)

    def of(self, column: str) -> list[str]:
        """All levels that can be asked for."""
        return list(dict.fromkeys([*self.levels[column], *self.row_of.get(column, ())]))

    def given(self, condition: Mapping[str, str], num_cells: int, flag: str = "--condition") -> CellConditions:
        """The same for all cells; a `UserError` lists near names for what the model does not know."""
        for name, level in condition.items():
            if name not in self.levels:
                known = near_names(name, self.levels) if self.levels else "it was trained without any"
                raise UserError(f"{flag} {name}={level}: the model has no condition {name!r}; {known}.")
            if level not in (known := self.of(name)):
                raise UserError(f"{flag} {name}={level}: the model knows no such level; {near_names(level, known)}.")
        return self.of_labels({name: np.full(num_cells, level, dtype=object) for name, level in condition.items()})

    def of_cells(self, obs: "pd.DataFrame", condition: Mapping[str, str], say: Callable[[str], None]) -> CellConditions:
        """Of each cell: what is given for all of them, else the column of obs of that name.

        Missing values, empty strings and levels that the model does not know are unknown, and told.
        """
        labels = {name: np.full(len(obs), level, dtype=object) for name, level in condition.items()}
        self.given(condition, 0)
        for name in self.levels:
            if name in labels or name not in obs:
                continue
            column = obs[name]
            labels[name] = text = np.where(column.isna(), "", column.astype(str)).astype(object)
            say(f"--condition {name} is not given: taking obs[{name!r}]")
            known = self.of(name)
            if unknown := sorted(set(text) - set(known) - {""}):
                cells = int(np.isin(text, unknown).sum())
                more = ", ..." if len(unknown) > 3 else ""
                say(
                    f"obs[{name!r}] of {cells:,} cells is unknown to the model ({', '.join(unknown[:3])}{more}): "
                    f"they are taken as cells without {name}; {near_names(unknown[0], known)}"
                )
            if missing := int((text == "").sum()):
                say(f"obs[{name!r}] of {missing:,} cells is missing: they are taken as cells without {name}")
        return self.of_labels(labels)

    def but_for(
        self, conditions: CellConditions, condition: Mapping[str, str], num_cells: int, flag: str = "--condition"
    ) -> CellConditions:
        """The conditions of these cells with the levels of `condition` in place of their own."""
        return self.of_labels(conditions.labels | self.given(condition, num_cells, flag).labels)

    def of_labels(self, labels: Mapping[str, np.ndarray]) -> CellConditions:
        """Of cells with these levels of conditions that the model has; a level that it does not know is unknown."""
        ids = {name: level_ids(text, self.levels[name]) for name, text in labels.items()}
        rows = {
            name: np.array([self.row_of[name].get(label, -1) for label in text], dtype=np.int64)
            for name, text in labels.items()
            if name in self.row_of
        }
        return CellConditions(dict(labels), ids, rows, self.vectors)
