"""What baselines know: effects of the training perturbations, real controls, features of what is to be predicted."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Float64

from mdsc.data.perturbations import combined_vectors, perturbed_genes
from mdsc.evaluation.perturb_task import PerturbTask
from mdsc.evaluation.perturb_units import Unit


class MadeCells(Mapping[Unit, np.ndarray]):
    """Cells of units, made when they are asked for and not kept."""

    def __init__(self, units: Sequence[Unit], make: Callable[[Unit], np.ndarray]):
        self.units, self.make = dict.fromkeys(units), make

    def __getitem__(self, unit: Unit) -> np.ndarray:
        if unit not in self.units:
            raise KeyError(unit)
        return self.make(unit)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True, eq=False)
class TrainingEffects:
    """Of a task without its test cells.

    A key is what features tell apart: a perturbation, by its gene embedding; or, where one perturbation was done in
    several contexts, a context, by the mean of its control cells.
    """

    seen: PerturbTask
    wanted: Mapping[Unit, int]
    """Cells to predict of each unit."""
    seed: int

    @cached_property
    def by_context(self) -> bool:
        """Whether contexts are what varies."""
        units = [*self.seen.training_units, *self.wanted]
        return len({unit.perturbation for unit in units}) == 1 and len({unit.context for unit in units}) > 1

    def key(self, unit: Unit) -> str:
        return unit.context if self.by_context else unit.perturbation

    @cached_property
    def effect_of(self) -> dict[Unit, Float64[np.ndarray, " genes"]]:
        """Mean of the training cells less that of the control cells of their context."""
        seen = self.seen
        return {unit: seen.mean(unit, "train") - seen.reference(unit.context) for unit in seen.training_units}

    @cached_property
    def units_of(self) -> dict[str, list[Unit]]:
        """Training units by key."""
        found: dict[str, list[Unit]] = {}
        for unit in self.seen.training_units:
            found.setdefault(self.key(unit), []).append(unit)
        return found

    @cached_property
    def effect_of_key(self) -> dict[str, Float64[np.ndarray, " genes"]]:
        """Mean over the contexts that a perturbation was done in."""
        return {key: np.mean([self.effect_of[unit] for unit in units], axis=0) for key, units in self.units_of.items()}

    def alike(self, context: str) -> list[Unit]:
        """The training units of a context; all of them where it has none."""
        inside = [unit for unit in self.seen.training_units if unit.context == context]
        return inside or list(self.seen.training_units)

    def mean_effect(self, context: str) -> Float64[np.ndarray, " genes"]:
        """Of the training perturbations: with the context's control mean, the mean of their centroids."""
        return np.mean([self.effect_of[unit] for unit in self.alike(context)], axis=0)

    @cached_property
    def vectors(self) -> dict[str, Float64[np.ndarray, " features"]]:
        """Features by key. A double's are the sum of its genes', unless it has some of its own."""
        keys = dict.fromkeys([*self.units_of, *map(self.key, self.wanted)])
        if self.by_context:
            return {key: self.seen.reference(key) for key in keys}
        given = self.seen.vectors or {}
        summed = combined_vectors([key for key in keys if key not in given], dict(given)) if given else {}
        return {key: given.get(key, summed.get(key)) for key in keys if key in given or key in summed}

    @cached_property
    def table(self) -> tuple[list[str], Float64[np.ndarray, "keys features"], Float64[np.ndarray, "keys genes"]]:
        """Training keys that have features; these; their effects."""
        keys = [key for key in self.units_of if key in self.vectors]
        if not keys:
            return [], np.zeros((0, 0)), np.zeros((0, len(self.seen.genes)))
        return keys, np.stack([self.vectors[key] for key in keys]), np.stack([self.effect_of_key[key] for key in keys])

    def target_columns(self, perturbation: str) -> list[int]:
        """Places of the perturbed genes that are measured."""
        place = self._place
        return [place[gene] for gene in perturbed_genes(perturbation) if gene in place]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {gene: column for column, gene in enumerate(self.seen.genes)}

    @cached_property
    def _halves(self) -> dict[Unit, list[np.ndarray]]:
        """Rows of the training cells of each unit: those of the space, those to be resampled."""
        rows = {unit: self.rng(unit, "space").permutation(self.seen.rows(unit, "train")) for unit in self.effect_of}
        return {unit: np.array_split(order, 2) for unit, order in rows.items()}

    def space_cells(self) -> sp.csr_matrix:
        """What distances are taken in is fitted on half of the perturbed training cells; see perturb_distances."""
        return self.seen.expression[np.sort(np.concatenate([halves[0] for halves in self._halves.values()]))]

    def rng(self, unit: Unit, purpose: str) -> np.random.Generator:
        """Keyed by what it is for, so that no method's draws depend on which others there are."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{purpose}\t{unit}".encode())])

    def control_cells(self, unit: Unit, purpose: str) -> Float32[np.ndarray, "cells genes"]:
        """Real control cells of the unit's context, as many as are wanted, or all that there are."""
        rows = self.seen.controls(unit.context)
        return self.seen.dense(np.sort(self.rng(unit, purpose).permutation(rows)[: self.wanted[unit]]))

    def shifted_controls(
        self, unit: Unit, effect: Float64[np.ndarray, " genes"], purpose: str
    ) -> Float32[np.ndarray, "cells genes"]:
        """How a method that predicts a mean alone is given cells: control cells, each with the predicted effect."""
        return self.control_cells(unit, purpose) + effect.astype(np.float32)

    def resampled(self, unit: Unit, among: Sequence[Unit], purpose: str) -> Float32[np.ndarray, "cells genes"]:
        """Training cells of these units that the space does not know, each unit as likely; those of another context are
        moved by the difference of the control means."""
        rng = self.rng(unit, purpose)
        rows = [self._halves[one][1] for one in among]
        pool = np.concatenate(rows)
        weight = np.concatenate([np.full(len(one), 1 / (len(rows) * len(one))) for one in rows])
        drawn = np.sort(rng.choice(pool, min(self.wanted[unit], len(pool)), replace=False, p=weight))
        cells = self.seen.dense(drawn)
        for context in {one.context for one in among} - {unit.context}:
            move = self.seen.reference(unit.context) - self.seen.reference(context)
            cells[self.seen.context[drawn] == context] += move.astype(np.float32)
        return cells
