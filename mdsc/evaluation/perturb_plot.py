"""Pictures of predicted perturbations: each headline metric by method with intervals, and true effects by predicted."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdsc.atomic import replacing
from mdsc.evaluation.perturb_baselines import ORACLE
from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_metrics import HEADLINES
from mdsc.evaluation.perturb_table import HEADINGS
from mdsc.evaluation.perturb_task import PerturbTask, Prediction
from mdsc.evaluation.plots import tidy
from mdsc.evaluation.report import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL, BASELINE, CEILING = "#c1272d", "#4c565f", "#2c7a4b"
MOST_POINTS = 20_000
Effects = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Method -> predicted and true changes of genes."""


def save_plot(path: Path, scores: PerturbScores, effects: Effects) -> None:
    """One PNG: metrics above, scatters below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = new_figure(15.0, 8.5)
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    draw_metrics(above, scores)
    draw_effects(below, effects)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130)


def draw_metrics(figure: "Figure", scores: PerturbScores) -> None:
    """A panel for each headline metric; where a method is not defined it has no mark, and says so."""
    methods = [*scores.models, *scores.baselines][::-1]
    panels = figure.subplots(1, len(HEADLINES), sharey=True)
    for axes, metric in zip(panels, HEADLINES, strict=True):
        for place, method in enumerate(methods):
            found = scores.estimate(method, metric)
            if found is None:
                axes.text(
                    0.02, place, "n/a", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color="0.5"
                )
                continue
            colour = MODEL if method in scores.models else CEILING if method == ORACLE else BASELINE
            if found.interval is not None:
                axes.plot(found.interval, [place, place], color=colour, linewidth=1.6)
            axes.plot(found.mean, place, marker="o", color=colour, markersize=6)
        axes.axvline(0, color="0.8", linewidth=1, zorder=0)
        axes.set_title(HEADINGS[metric], fontsize=10)
        axes.set_ylim(-0.6, len(methods) - 0.4)
        tidy(axes)
    panels[0].set_yticks(range(len(methods)), [method.replace("_", " ") for method in methods])


def draw_effects(figure: "Figure", effects: Effects) -> None:
    panels = figure.subplots(1, max(2, len(effects)), squeeze=False)[0]
    for axes in panels[len(effects) :]:
        axes.set_axis_off()
    for axes, (method, (predicted, true)) in zip(panels, effects.items(), strict=False):
        _scatter(axes, predicted, true)
        axes.set_title(f"{method}: a point is a gene of a perturbation", fontsize=10)


def _scatter(axes: "Axes", predicted: np.ndarray, true: np.ndarray) -> None:
    most = np.random.default_rng(0).permutation(len(true))[:MOST_POINTS]
    axes.scatter(predicted[most], true[most], s=5, alpha=0.35, linewidths=0, color=MODEL, rasterized=True)
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    axes.plot(ends, ends, color="0.4", linewidth=1)
    axes.set(xlabel="predicted change of log expression", ylabel="true change")
    tidy(axes)


def effects_of(task: PerturbTask, predictions: list[Prediction]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of all test perturbations, one after another."""
    true = np.concatenate([task.mean(unit) - task.reference(unit.context) for unit in task.units])
    found = {}
    for prediction in predictions:
        parts = [prediction.mean(unit) - task.reference(unit.context) for unit in task.units]
        found[prediction.name] = (np.concatenate(parts), true)
    return found
