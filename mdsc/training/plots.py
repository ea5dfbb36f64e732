"""The picture of a run: loss.png."""

from dataclasses import dataclass
from pathlib import Path

from mdsc.atomic import replacing
from mdsc.training.tracking import read_metrics


@dataclass(frozen=True)
class Curves:
    """What of metrics.jsonl is drawn."""

    term: str
    """Of the training loss."""
    label: str
    validation: str
    """What the names of validation scores begin with."""
    unit: str


def plot_losses(folder: str | Path, curves: Curves, pathway_steps: int = 0) -> Path:
    """Draw training and validation against the step, from metrics.jsonl, into loss.png; give its path."""
    # The object interface leaves the user's own matplotlib backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(folder)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = _series(metrics, curves.term)
    axes.plot(steps, values, color="0.75", linewidth=1, label=curves.label)
    names = sorted({name for line in metrics for name in line if name.startswith(curves.validation)})
    for number, name in enumerate(names):
        steps, values = _series(metrics, name)
        label = name.replace("_", " ")
        if (ratio := name.removeprefix(curves.validation)) and curves.validation.endswith("_at_"):
            label = f"validation, {float(ratio):.0%} hidden"
        axes.plot(steps, values, marker="o", markersize=3, color=f"C{number}", label=label)
    if 0 < pathway_steps < max((line["step"] for line in metrics), default=0):
        axes.axvline(pathway_steps, color="0.5", linewidth=0.8, linestyle=":", label="attention joins in")
    axes.set(xlabel="optimiser step", ylabel=curves.unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path = Path(folder) / "loss.png"
    with replacing(path) as beside:
        figure.savefig(beside)
    return path


def _series(metrics: list[dict], name: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]
