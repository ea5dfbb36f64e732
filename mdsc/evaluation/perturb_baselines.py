"""Plain predictions of perturbed cells. Each is given training cells, real controls and features, and no test cell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mdsc.data.perturbations import perturbed_genes
from mdsc.evaluation.perturb_regressions import bilinear, forest, nearest_keys, nearest_mean, ridge
from mdsc.evaluation.perturb_task import PerturbTask, Prediction
from mdsc.evaluation.perturb_training import MadeCells, TrainingEffects
from mdsc.evaluation.perturb_units import Unit

ORACLE = "split_half"
"""Half of the true test cells against the other half: no method, but what noise leaves to be had."""
Effects = Mapping[Unit, Float64[np.ndarray, " genes"]]


@dataclass(frozen=True)
class Baseline:
    fit: Callable[[TrainingEffects], Prediction | None]
    """None where the task lacks what it needs."""
    says: str


def control_mean(known: TrainingEffects) -> Prediction:
    """Nothing happens."""
    cells = MadeCells(list(known.wanted), lambda unit: known.control_cells(unit, "control_mean"))
    means = {unit: known.seen.reference(unit.context) for unit in known.wanted}
    return Prediction("control_mean", cells, means)


def perturbed_mean(known: TrainingEffects) -> Prediction:
    """What happens on average; as cells: training cells of all perturbations, resampled."""
    means = {u: known.seen.reference(u.context) + known.mean_effect(u.context) for u in known.wanted}
    cells = MadeCells(list(known.wanted), lambda u: known.resampled(u, known.alike(u.context), "perturbed_mean"))
    return Prediction("perturbed_mean", cells, means)


def knock_down(known: TrainingEffects) -> Prediction | None:
    """The perturbed mean; the perturbed gene keeps that share of its control mean that targets keep in training."""
    shares = []
    for unit in known.effect_of:
        control = known.seen.reference(unit.context)
        columns = known.target_columns(unit.perturbation)
        shares += [1 + known.effect_of[unit][c] / control[c] for c in columns if control[c] > 0]
    if not shares:
        return None
    share = max(0.0, float(np.mean(shares)))
    plain = perturbed_mean(known)
    means = {}
    for unit in known.wanted:
        means[unit] = plain.means[unit].copy()
        columns = known.target_columns(unit.perturbation)
        means[unit][columns] = share * known.seen.reference(unit.context)[columns]

    def cells(unit: Unit) -> np.ndarray:
        made = plain.cells[unit]
        for column in known.target_columns(unit.perturbation):
            made[:, column] *= means[unit][column] / max(1e-9, made[:, column].mean())
        return made

    return Prediction("perturbed_mean_knock_down", MadeCells(list(known.wanted), cells), means)


def linear_shift(known: TrainingEffects) -> Prediction | None:
    """Where contexts vary: the change of all training cells, whichever their context."""
    if not known.by_context:
        return None
    seen, units = known.seen, known.seen.training_units
    changed = [len(seen.rows(unit, "train")) for unit in units]
    control = [len(seen.controls(unit.context)) for unit in units]
    perturbed_mean = np.average([seen.mean(unit, "train") for unit in units], axis=0, weights=changed)
    change = perturbed_mean - np.average([seen.reference(unit.context) for unit in units], axis=0, weights=control)
    return of_effects("linear_shift", known, dict.fromkeys(known.wanted, change))


def nearest_cells(known: TrainingEffects) -> Prediction | None:
    """Resampled training cells of the nearest keys, as many of them as cross-validation takes: a law, not a mean."""
    found = nearest_keys(known)
    if not found:
        return None

    def cells(unit: Unit) -> np.ndarray:
        units = [one for key in found[unit] for one in known.units_of[key]]
        same = [one for one in units if one.context == unit.context]
        return known.resampled(unit, same or units, "nearest_cells")

    return Prediction("nearest_cells", MadeCells(list(found), cells))


def additive(known: TrainingEffects) -> Prediction | None:
    """Doubles alone: the sum of the effects of their genes, where each was perturbed by itself in training."""
    effects = {}
    for unit in known.wanted:
        genes = perturbed_genes(unit.perturbation)
        parts = [known.effect_of.get(Unit(unit.context, gene), known.effect_of_key.get(gene)) for gene in genes]
        if len(genes) > 1 and all(part is not None for part in parts):
            effects[unit] = np.sum(parts, axis=0)
    return of_effects("additive", known, effects)


def of_effects(name: str, known: TrainingEffects, effects: Effects | None) -> Prediction | None:
    """Means are control mean + effect, cells are control cells + effect."""
    if not effects:
        return None
    means = {unit: known.seen.reference(unit.context) + effect for unit, effect in effects.items()}
    cells = MadeCells(list(effects), lambda unit: known.shifted_controls(unit, effects[unit], name))
    return Prediction(name, cells, means)


ALL: dict[str, Baseline] = {
    "control_mean": Baseline(control_mean, "real control cells: nothing happens"),
    "perturbed_mean": Baseline(perturbed_mean, "mean effect of the training perturbations; their cells, resampled"),
    "perturbed_mean_knock_down": Baseline(knock_down, "the same, with the perturbed gene knocked down"),
    "linear_shift": Baseline(linear_shift, "change of all training cells (where contexts vary)"),
    "ridge": Baseline(lambda known: of_effects("ridge", known, ridge(known)), "ridge regression on features"),
    "knn": Baseline(lambda known: of_effects("knn", known, nearest_mean(known)), "mean of the k nearest by features"),
    "forest_go": Baseline(lambda known: of_effects("forest_go", known, forest(known)), "random forest on gene sets"),
    "bilinear": Baseline(
        lambda known: of_effects("bilinear", known, bilinear(known)), "G K P, ridge 0.1, 10 PCs (Ahlmann-Eltze 2025)"
    ),
    "nearest_cells": Baseline(nearest_cells, "training cells of the nearest perturbations, resampled"),
    "additive": Baseline(additive, "sum of the single effects (doubles alone)"),
}
"""In the order of tables."""


def fit_baselines(task: PerturbTask, names: tuple[str, ...], seed: int) -> list[Prediction]:
    """Of those that the task has what they need for. They are given the task without its test cells."""
    known = known_of(task, seed)
    fitted = [ALL[name].fit(known) for name in names]
    return [prediction for prediction in fitted if prediction is not None]


def known_of(task: PerturbTask, seed: int) -> TrainingEffects:
    """Of the test cells, their number alone is told."""
    return TrainingEffects(task.seen, {unit: len(task.rows(unit)) for unit in task.units}, seed)
