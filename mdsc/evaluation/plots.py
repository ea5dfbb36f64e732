"""report.png: the loss, the metrics beside the baselines, one cell being filled in, and the calibration of zeros."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdsc.atomic import replacing
from mdsc.evaluation.calibration import GROUPS, PIT_BINS
from mdsc.evaluation.inpaint import MODEL, InpaintResult
from mdsc.evaluation.unmasking import Unmasking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

METRICS = {"nll": "nats per hidden gene", "accuracy": "accuracy", "mae_log1p": "MAE of log1p(count)"}
COLOURS = {
    MODEL: "#c1272d",
    "pooled": "#e08a1e",
    "knn": "#0b6e99",
    "svd": "#3f9b6f",
    "gene_marginal_depth": "#7c6bb0",
    "gene_marginal": "#8c8c8c",
}
GENES_SHOWN = 160
HIDDEN_COLOUR = "#d9d9d9"


def save_report(
    path: str | Path,
    result: InpaintResult,
    *,
    metrics_file: Path | None = None,
    unmasking: Unmasking | None = None,
    title: str = "",
) -> None:
    """Draw what there is. metrics_file: metrics.jsonl of the run; without it there is no loss curve."""
    # The object interface leaves the user's own matplotlib backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9.2 if unmasking else 8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25], hspace=0.04)
    losses = None if metrics_file is None or not metrics_file.is_file() else read_lines(metrics_file)
    panels = top.subplots(1, len(METRICS) + bool(losses), squeeze=False)[0]
    if losses:
        loss_curve(panels[0], losses)
        panels = panels[1:]
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        against_ratio(axes, result, metric, label)
    handles, labels = panels[0].get_legend_handles_labels()
    top.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if unmasking is None:
        zero_rates(bottom, result)
    else:
        left, right = bottom.subfigures(1, 2, width_ratios=[2.4, 1], wspace=0.03)
        draw_unmasking(left, unmasking)
        zero_rates(right, result)
    if title:
        figure.suptitle(title, fontsize=13)
    with replacing(path) as beside:
        figure.savefig(beside)


def read_lines(path: Path) -> list[dict]:
    """One JSON object a line: `step`, and what was measured then."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_curve(axes: "Axes", lines: list[dict]) -> None:
    def series(name: str) -> tuple[list, list]:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    axes.plot(*series("nll"), color="0.78", linewidth=1, label="training, any ratio")
    ratios = sorted({name for line in lines for name in line if name.startswith("validation_nll_at_")})
    for shade, name in zip(np.linspace(0.45, 1, max(len(ratios), 1)), ratios, strict=False):
        label = f"validation, {float(name.rpartition('_')[2]):.0%} hidden"
        axes.plot(*series(name), color=COLOURS[MODEL], alpha=shade, marker="o", markersize=2.5, label=label)
    axes.set(title="Training", xlabel="optimiser step", ylabel=METRICS["nll"])
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def against_ratio(axes: "Axes", result: InpaintResult, metric: str, label: str) -> None:
    """The majority token is left out: it is so far off that the others would be one line. The model's bars are standard
    errors over cells; most of it is shared by all predictors, so that differences are much surer than they look."""
    ratios = list(result.scores)
    metrics = {ratio: {name: scores.metrics() for name, scores in result.scores[ratio].items()} for ratio in ratios}
    names = [name for name in result.scores[ratios[0]] if name != "majority"] or list(result.scores[ratios[0]])
    for name in sorted(names, key=lambda name: name == MODEL):  # the model on top
        is_model = name == MODEL
        axes.errorbar(
            ratios,
            [metrics[ratio][name][metric] for ratio in ratios],
            yerr=[result.scores[ratio][name].standard_errors[metric] for ratio in ratios] if is_model else None,
            color=COLOURS.get(name, "0.3"),
            linewidth=2.6 if is_model else 1.4,
            marker="o",
            markersize=7 if is_model else 4,
            capsize=3,
            elinewidth=1,
            label=name.replace("_", " "),
        )
    axes.set(title=label, xlabel="share of genes hidden", xticks=ratios)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.margins(x=0.08)
    tidy(axes)


def draw_unmasking(figure: "Figure | SubFigure", unmasking: Unmasking) -> None:
    from matplotlib.colors import Normalize

    genes = np.argsort(-unmasking.mean_count, kind="stable")[:GENES_SHOWN]
    states = np.where(unmasking.visible, np.log1p(unmasking.counts), np.nan)[:, genes]
    truth = np.log1p(unmasking.truth[genes])[None]
    norm = Normalize(0, max(float(truth.max()), float(np.nanmax(states, initial=0)), 1.0))
    above, below = figure.subplots(2, 1, height_ratios=[12, 1], sharex=True, gridspec_kw={"hspace": 0.02})
    options = {"aspect": "auto", "interpolation": "nearest", "norm": norm, "cmap": "YlGnBu"}
    above.set_facecolor(HIDDEN_COLOUR)
    image = above.imshow(states, **options)
    below.imshow(truth, **options)
    last = len(states) - 1
    above.set_yticks([0, last // 4, last // 2, 3 * last // 4, last])
    above.set(ylabel="sampling step", title=f"One cell, {unmasking.ratio:.0%} hidden (grey), being filled in")
    above.tick_params(bottom=False, labelbottom=False)
    below.set(yticks=[0], yticklabels=["truth"])
    below.set_xlabel(f"the {len(genes)} most expressed genes over all cells, highest first")
    bar = figure.colorbar(image, ax=[above, below], pad=0.01, aspect=40)
    ticks = [count for count in (0, 1, 3, 10, 30, 100, 300, 1000) if np.log1p(count) <= norm.vmax]
    bar.set_ticks([float(np.log1p(count)) for count in ticks], labels=[str(count) for count in ticks])
    bar.set_label("count")


def zero_rates(figure: "Figure | SubFigure", result: InpaintResult) -> None:
    """At the highest mask ratio: predicted against observed share of zeros, and the difference, by decile of genes."""
    ratio = max(result.scores)
    by_name = result.scores[ratio]
    above, below = figure.subplots(2, 1, height_ratios=[2.2, 1], sharex=True)
    above.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    below.axhspan(-0.01, 0.01, color="0.92", zorder=0)
    below.axhline(0, color="0.7", linewidth=1, zorder=0)
    for name in (name for name in by_name if name in (MODEL, "knn", "svd", "pooled")):
        predicted, observed = by_name[name].zero_rates()
        style = {"color": COLOURS[name], "markersize": 7 if name == MODEL else 4, "zorder": 3 if name == MODEL else 2}
        above.plot(observed, predicted, marker="o", linestyle="", label=name, **style)
        below.plot(observed, predicted - observed, marker="o", linewidth=1, **style)
    above.set(title=f"Zeros by decile of genes, {ratio:.0%} hidden", ylabel="predicted share of zeros")
    above.legend(frameon=False, fontsize=9)
    below.set(xlabel="observed share of zeros", ylabel="difference")
    limit = max(0.02, *(abs(value) for value in below.get_ylim()))
    below.set_ylim(-limit, limit)
    tidy(above)
    tidy(below)


def pit_histograms(figure: "Figure | SubFigure", result: InpaintResult, names: Sequence[str]) -> None:
    """At the highest mask ratio: a row for each group of positions, a column for each predictor."""
    by_name = result.scores[max(result.scores)]
    centres = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    panels = figure.subplots(len(GROUPS), len(names), sharex=True, sharey="row", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name.replace("_", " "))
    for row, group, where in zip(panels, GROUPS, ("all hidden", "1 or more expected"), strict=True):
        for axes, name in zip(row, names, strict=True):
            pit = by_name[name].calibration_metrics[0][group]["pit"]
            axes.bar(centres, np.nan_to_num(pit) * PIT_BINS, 1 / PIT_BINS, color=COLOURS.get(name, "0.65"))
            axes.axhline(1, color="black", linewidth=1)
            axes.set_xlim(0, 1)
            tidy(axes)
        row[0].set_ylabel(f"density, {where}")


def tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
