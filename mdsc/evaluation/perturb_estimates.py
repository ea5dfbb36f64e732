"""Scores of methods over units, with paired bootstrap intervals: of each method, and of a model less each baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from mdsc.errors import UserError
from mdsc.evaluation.perturb_baselines import ORACLE
from mdsc.evaluation.perturb_metrics import HIGHER_IS_BETTER
from mdsc.evaluation.perturb_units import Unit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over units, and its percentile interval over resampled units."""

    mean: float
    interval: tuple[float, float] | None
    """None for one unit: there is nothing to resample."""
    units: int
    """For which it is defined."""


@dataclass(frozen=True, eq=False)
class PerturbScores:
    units: tuple[Unit, ...]
    values: Mapping[str, Mapping[str, Float64[np.ndarray, " units"]]]
    """Method -> metric -> a value for each unit; NaN where it is not defined."""
    models: tuple[str, ...]
    settings: Mapping
    seed: int = 0
    num_bootstrap: int = 1000

    @property
    def baselines(self) -> tuple[str, ...]:
        """All other methods; the oracle last."""
        return tuple(name for name in self.values if name not in self.models)

    def estimate(self, method: str, metric: str) -> Estimate | None:
        """None where it is defined for no unit."""
        return self._estimate(self.values[method][metric])

    def difference(self, model: str, baseline: str, metric: str) -> Estimate | None:
        """Model less baseline, over the units where both are defined."""
        return self._estimate(self.values[model][metric] - self.values[baseline][metric])

    def median(self, method: str, metric: str) -> float | None:
        values = self.values[method][metric]
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    def undefined(self, method: str, metric: str) -> int:
        return int(np.isnan(self.values[method][metric]).sum())

    def best(self, metric: str, among: Sequence[str]) -> str | None:
        """The method of best mean. One that is defined for less than half of the perturbations that another is defined
        for is left out: the mean over few is no match. None where none is defined; the oracle is no method."""
        found = {name: self.estimate(name, metric) for name in among if name != ORACLE}
        defined = {name: estimate for name, estimate in found.items() if estimate is not None}
        most = max((estimate.units for estimate in defined.values()), default=0)
        means = {name: estimate.mean for name, estimate in defined.items() if estimate.units >= most / 2}
        if not means:
            return None
        return (max if HIGHER_IS_BETTER[metric] else min)(means, key=means.__getitem__)

    def best_baseline(self, metric: str) -> str | None:
        return self.best(metric, self.baselines)

    def _estimate(self, values: Float64[np.ndarray, " units"]) -> Estimate | None:
        defined = np.isfinite(values)
        if not defined.any():
            return None
        interval = None
        if defined.sum() > 1 and self.num_bootstrap:
            total = np.where(defined, values, 0.0)[self._draws].sum(axis=1)
            number = defined[self._draws].sum(axis=1)
            means = total[number > 0] / number[number > 0]
            low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            interval = (float(low), float(high))
        return Estimate(float(values[defined].mean()), interval, int(defined.sum()))

    @cached_property
    def _draws(self) -> Int64[np.ndarray, "draws units"]:
        """The same units for all methods and metrics: intervals of differences are paired."""
        number = len(self.units)
        return np.random.default_rng(self.seed).integers(number, size=(self.num_bootstrap, number))

    def to_json(self) -> dict:
        """{"model": row, "baselines": {name: row}, "settings"}; several predictions: {"models": {name: row}, ...}.

        A row has the mean of each metric by its name, None where it is not defined for any unit; and `median`,
        `interval`, `undefined` (units), `per_unit`; a model's also `difference`, from each baseline.
        """
        models = {name: self._row(name) | {"difference": self._differences(name)} for name in self.models}
        named = {"model": next(iter(models.values()))} if len(models) == 1 else {"models": models}
        baselines = {name: self._row(name) for name in self.baselines}
        return {**named, "baselines": baselines, "settings": dict(self.settings)}

    def _row(self, method: str) -> dict:
        metrics = self.values[method]
        estimates = {metric: self.estimate(method, metric) for metric in metrics}
        return {
            **{metric: None if found is None else found.mean for metric, found in estimates.items()},
            "median": {metric: self.median(method, metric) for metric in metrics},
            "interval": {
                metric: None if found is None or found.interval is None else list(found.interval)
                for metric, found in estimates.items()
            },
            "undefined": {metric: self.undefined(method, metric) for metric in metrics},
            "per_unit": {
                metric: {
                    str(unit): None if np.isnan(value) else float(value)
                    for unit, value in zip(self.units, values, strict=True)
                }
                for metric, values in metrics.items()
            },
        }

    def _differences(self, model: str) -> dict:
        found: dict[str, dict] = {}
        for baseline in self.baselines:
            found[baseline] = {}
            for metric in self.values[model]:
                estimate = self.difference(model, baseline, metric)
                found[baseline][metric] = estimate and {
                    "mean": estimate.mean,
                    "interval": estimate.interval and list(estimate.interval),
                    "units": estimate.units,
                }
        return found


def pooled(scores: Sequence[PerturbScores]) -> PerturbScores:
    """Of several folds, whose units differ, as one: the bootstrap is over the units of all. A method that a fold lacks
    is not defined there. Ranks among the perturbations of a fold stay what they are."""
    first = scores[0]
    if any(other.models != first.models for other in scores):
        raise UserError("folds can be pooled where all have the same predictions.")
    units = tuple(unit for one in scores for unit in one.units)
    assert len(set(units)) == len(units), "a unit is tested in one fold"
    methods = dict.fromkeys(name for one in scores for name in one.values)
    ordered = [name for name in methods if name != ORACLE] + [name for name in methods if name == ORACLE]
    values = {
        name: {
            metric: np.concatenate(
                [one.values[name][metric] if name in one.values else np.full(len(one.units), np.nan) for one in scores]
            )
            for metric in HIGHER_IS_BETTER
        }
        for name in ordered
    }
    settings = {"folds": len(scores), "of_each_fold": [dict(one.settings) for one in scores]}
    return PerturbScores(units, values, first.models, settings, first.seed, first.num_bootstrap)
