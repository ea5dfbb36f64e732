"""All metrics of all methods on one task: predictions, baselines, and the split-half oracle."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mdsc.data.perturbations import perturbed_genes
from mdsc.errors import UserError
from mdsc.evaluation.perturb_baselines import ALL, ORACLE, fit_baselines, known_of
from mdsc.evaluation.perturb_distances import (
    FITTED_CELLS,
    MOST_CELLS,
    TrainingSpace,
    distances,
    some_rows,
)
from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_metrics import (
    CONSTANT,
    CORRELATIONS,
    FALSE_DISCOVERY_RATE,
    HIGHER_IS_BETTER,
    TOP_GENES,
    Moments,
    UnitTruth,
    de_overlap,
    discrimination,
    effect_metrics,
)
from mdsc.evaluation.perturb_task import LEAST_CELLS, PerturbTask, Prediction
from mdsc.evaluation.perturb_training import MadeCells
from mdsc.evaluation.perturb_units import Unit

Points = Float64[np.ndarray, "cells k"]


@dataclass(frozen=True, eq=False)
class _Truth:
    """What methods are compared with: all test cells of each unit, or, for the oracle, half of them."""

    effects: Mapping[Unit, UnitTruth]
    points: Mapping[Unit, Points]
    """Some of the cells, in random order."""
    number: Mapping[Unit, int]
    """Cells that there are."""

    @classmethod
    def of(cls, setting: "_Setting", rows: Mapping[Unit, np.ndarray]) -> "_Truth":
        task = setting.task
        names = np.array(task.genes, dtype=object)
        effects, points = {}, {}
        for unit, own in rows.items():
            is_target = np.isin(names, perturbed_genes(unit.perturbation))
            effects[unit] = UnitTruth.of(Moments.of(task.expression[own]), setting.control[unit.context], is_target)
            some = own[some_rows(len(own), MOST_CELLS, setting.rng(unit, "real"))]
            points[unit] = setting.space.project(task.dense(some))
        return cls(effects, points, {unit: len(own) for unit, own in rows.items()})


@dataclass(frozen=True, eq=False)
class _Setting:
    """What all comparisons of a task share."""

    task: PerturbTask
    control: Mapping[str, Moments]
    shift: Mapping[str, np.ndarray]
    """Mean effect of the training perturbations, by context."""
    space: TrainingSpace
    seed: int

    @classmethod
    def of(cls, task: PerturbTask, seed: int) -> "_Setting":
        known = known_of(task, seed)
        contexts = sorted({unit.context for unit in task.units})
        control = {context: Moments.of(task.expression[task.controls(context)]) for context in contexts}
        shift = {context: known.mean_effect(context) for context in contexts}
        return cls(task, control, shift, TrainingSpace.fit(known.space_cells(), seed), seed)

    def rng(self, unit: Unit, purpose: str) -> np.random.Generator:
        """The same for all methods: their differences are then no matter of the draw."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{purpose}\t{unit}".encode())])


def score(
    task: PerturbTask,
    predictions: Sequence[Prediction],
    baselines: Sequence[str] = tuple(ALL),
    seed: int = 0,
    num_bootstrap: int = 1000,
    say: Callable[[str], None] = lambda text: None,
) -> PerturbScores:
    """Every metric of every prediction, baseline and the oracle, unit by unit: one unit's cells are dense at a time."""
    if unknown := [name for name in baselines if name not in ALL]:
        raise UserError(f"there is no baseline {unknown[0]!r}; there are {', '.join(ALL)}.")
    names = [prediction.name for prediction in predictions]
    for name in names:
        if name in ALL or name == ORACLE or names.count(name) > 1:
            raise UserError(f"--predicted: two methods are called {name!r}: name them apart, NAME=FILE.")
    setting = _Setting.of(task, seed)
    truth = _Truth.of(setting, {unit: task.rows(unit) for unit in task.units})
    values = {}
    fitted = fit_baselines(task, tuple(baselines), seed)
    for prediction in [*predictions, *fitted]:
        say(f"scoring {prediction.name}")
        values[prediction.name] = _values(prediction, truth, setting)
    half, other = _halves(setting)
    cells = MadeCells(task.units, lambda unit: task.dense(half[unit]))
    values[ORACLE] = _values(Prediction(ORACLE, cells), _Truth.of(setting, other), setting)
    return PerturbScores(
        units=task.units,
        values=values,
        models=tuple(names),
        settings=_settings(setting),
        seed=seed,
        num_bootstrap=num_bootstrap,
    )


def _values(prediction: Prediction, truth: _Truth, setting: _Setting) -> dict[str, Float64[np.ndarray, " units"]]:
    """By metric; NaN stands for what is not defined, and goes no further than PerturbScores."""
    units = setting.task.units
    means = {unit: prediction.mean(unit) for unit in units}
    deltas = {unit: mean - setting.control[unit.context].mean for unit, mean in means.items() if mean is not None}
    found = {metric: np.full(len(units), np.nan) for metric in HIGHER_IS_BETTER}
    for place, unit in enumerate(units):
        if unit not in deltas:
            continue
        beside = [other for other in units if other.context == unit.context]
        row = _of_unit(unit, deltas, beside, truth, setting) | _of_cells(unit, prediction, truth, setting)
        for metric, value in row.items():
            found[metric][place] = np.nan if value is None else value
    return found


def _of_unit(
    unit: Unit, deltas: Mapping[Unit, np.ndarray], beside: Sequence[Unit], truth: _Truth, setting: _Setting
) -> dict[str, float | None]:
    """What needs the mean alone."""
    effect, delta = truth.effects[unit], deltas[unit]
    predicted = np.stack([deltas[other] for other in beside if other in deltas])
    same_for_all = len(predicted) > 1 and float(np.ptp(predicted, axis=0).max()) < CONSTANT
    row = effect_metrics(effect, delta, setting.shift[unit.context], same_for_all=same_for_all)
    if np.ptp(delta + setting.control[unit.context].mean) < CONSTANT:
        # All genes alike, e.g. no counts at all: what would correlate is the control mean.
        row |= dict.fromkeys(CORRELATIONS)
    others = [truth.effects[other] for other in beside]
    for kind in ("l1", "cosine"):
        value = discrimination(others, delta, beside.index(unit), kind, effect.is_target)
        row[f"discrimination_{kind}"] = value
    return row


def _of_cells(unit: Unit, prediction: Prediction, truth: _Truth, setting: _Setting) -> dict[str, float | None]:
    """What needs cells: as many of them as there are real ones, so that no method gains by their number."""
    if unit not in prediction.cells:
        return {}
    cells = prediction.cells[unit]
    cells = cells[some_rows(len(cells), truth.number[unit], setting.rng(unit, "predicted"))]
    overlap = de_overlap(truth.effects[unit], Moments.of(cells), setting.control[unit.context])
    points = setting.space.project(cells[:MOST_CELLS])
    return {"de_overlap": overlap} | distances(points, truth.points[unit], setting.space.scale)


def _halves(setting: _Setting) -> tuple[dict[Unit, np.ndarray], dict[Unit, np.ndarray]]:
    """Of the test cells of each unit: what predicts, what is predicted."""
    orders = {unit: setting.rng(unit, "halves").permutation(setting.task.rows(unit)) for unit in setting.task.units}
    halves = {unit: np.array_split(order, 2) for unit, order in orders.items()}
    return {unit: pair[0] for unit, pair in halves.items()}, {unit: pair[1] for unit, pair in halves.items()}


def _settings(setting: _Setting) -> dict:
    task = setting.task
    return {
        "test_perturbations": len(task.units),
        "training_perturbations": len(task.training_units),
        "genes": len(task.genes),
        "test_cells": sum(len(task.rows(unit)) for unit in task.units),
        "control_cells": sum(len(task.controls(context)) for context in setting.control),
        "components": len(setting.space.components),
        "components_fitted_on_cells": setting.space.fitted_cells,
        "components_fitted_on_cells_at_most": FITTED_CELLS,
        "cells_compared_at_most": MOST_CELLS,
        "least_cells": LEAST_CELLS,
        "top_genes": TOP_GENES,
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
        "seed": setting.seed,
    }
