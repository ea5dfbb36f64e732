"""The table that a person reads, and a plain sentence on who wins."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mdsc.evaluation.calibration import GROUPS
from mdsc.evaluation.inpaint import MODEL, InpaintResult
from mdsc.evaluation.metrics import LOWER_IS_BETTER

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {
    "nll": "nll ↓",
    "accuracy": "acc ↑",
    "accuracy_nonzero": "acc x>0 ↑",
    "mae_log1p": "mae ↓",
    "spearman_nonzero": "rho x>0 ↑",
    "zero_rate_error": "zeros ↓",
    "crps": "crps ↓",
}
CAPTION = (
    "Hidden positions only. nll: nats per gene ± standard error; acc: accuracy; mae: of log1p(mean count); "
    "rho: Spearman; zeros: error of the zero rate; x>0: where the true count is above 0. n/a: says no law. * best"
)


def scores_table(result: InpaintResult) -> "Table":
    """A block of rows for each mask ratio, by nll; the model in bold, the best of each column starred."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", padding=(0, 1))
    table.add_column("hidden", justify="right")
    table.add_column("predictor")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for ratio, by_name in result.scores.items():
        metrics = {name: scores.metrics() for name, scores in by_name.items()}
        errors = {name: scores.standard_errors for name, scores in by_name.items()}
        best = best_values(metrics)
        for place, name in enumerate(by_likelihood(metrics)):
            cells = []
            for metric in HEADINGS:
                if np.isnan(metrics[name][metric]):
                    cells.append("n/a  ")
                    continue
                text = f"{metrics[name][metric]:.4f}"
                if metric == "nll":
                    text += f" ± {errors[name][metric]:.4f}"
                is_best = metrics[name][metric] == best[metric]
                cells.append(Text.assemble(text, (" *", "green")) if is_best else f"{text}  ")
            table.add_row(
                f"{ratio:.0%}" if place == 0 else "",
                name,
                *cells,
                style="bold cyan" if name == MODEL else "",
                end_section=place == len(metrics) - 1,
            )
    return table


def by_likelihood(metrics: Mapping[str, dict[str, float]]) -> list[str]:
    """Names by nll. Those that have none come last: NaN has no place in an order."""
    return sorted(metrics, key=lambda name: np.nan_to_num(metrics[name]["nll"], nan=np.inf))


def best_values(metrics: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """The best of each column, among those for whom it is defined."""
    values = {metric: [row[metric] for row in metrics.values()] for metric in HEADINGS}
    return {m: float((np.nanmin if LOWER_IS_BETTER[m] else np.nanmax)(values[m])) for m in HEADINGS}


CALIBRATION_HEADINGS = {
    "coverage_50": "50%",
    "coverage_90": "90%",
    "pit_error": "pit error ↓",
    "interval_90_width": "width",
}
CALIBRATION_CAPTION = (
    "Share of the PIT in its central 50% and 90%, which right laws have on average; pit error: its largest distance "
    "from uniform; width: of the plain 90% interval, in counts. E>=1: only where the predictor expects 1 or more"
)


def calibration_table(result: InpaintResult) -> "Table":
    """Whether intervals cover what they should: over all hidden positions, and where 1 or more is expected."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=CALIBRATION_CAPTION, caption_justify="left", padding=(0, 1))
    table.add_column("hidden", justify="right")
    table.add_column("predictor")
    for prefix in ("", "E>=1 "):
        for heading in CALIBRATION_HEADINGS.values():
            table.add_column(f"{prefix}{heading}", justify="right", no_wrap=True)
    columns = [(group, metric) for group in GROUPS for metric in CALIBRATION_HEADINGS]
    for ratio, by_name in result.scores.items():
        laws = (name for name, scores in by_name.items() if scores.calibration is not None)
        names = sorted(laws, key=lambda name: by_name[name].metrics()["nll"])
        for place, name in enumerate(names):
            values = by_name[name].calibration_metrics[0]
            table.add_row(
                f"{ratio:.0%}" if place == 0 else "",
                name,
                *(calibration_text(metric, values[group][metric]) for group, metric in columns),
                style="bold cyan" if name == MODEL else "",
                end_section=place == len(names) - 1,
            )
    return table


def calibration_text(metric: str, value: float) -> str:
    if value != value:
        return "n/a"
    return f"{value:.1%}" if "coverage" in metric else f"{value:.2f}" if "width" in metric else f"{value:.4f}"


def verdicts(result: InpaintResult) -> list[str]:
    """One sentence for each mask ratio: whether the model beats the best baseline, and by how much."""
    sentences = []
    for ratio in result.scores:
        if (comparison := result.comparison(ratio)) is None:
            continue
        name, difference, error = comparison
        gap = f"{abs(difference):.4f} ± {error:.4f} nats per gene"
        if difference < 0:
            sentences.append(f"{ratio:.0%} hidden: the model beats the best baseline, {name}, by {gap}.")
        else:
            sentences.append(f"{ratio:.0%} hidden: the baseline {name} BEATS the model by {gap}.")
    return sentences
