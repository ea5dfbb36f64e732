"""The picture of a run: loss.png."""

from pathlib import Path

from mdsc.atomic import replacing
from mdsc.training.tracking import read_metrics


def plot_losses(folder: str | Path, pathway_steps: int = 0) -> Path:
    """Draw training and validation NLL against the step, from metrics.jsonl, into loss.png; give its path."""
    # The object interface leaves the user's own matplotlib backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(folder)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = _series(metrics, "nll")
    axes.plot(steps, values, color="0.75", linewidth=1, label="training, any mask ratio")
    names = sorted({name for line in metrics for name in line if name.startswith("validation_nll_at_")})
    for number, name in enumerate(names):
        steps, values = _series(metrics, name)
        label = f"validation, {float(name.rpartition('_')[2]):.0%} hidden"
        axes.plot(steps, values, marker="o", markersize=3, color=f"C{number}", label=label)
    if 0 < pathway_steps < max((line["step"] for line in metrics), default=0):
        axes.axvline(pathway_steps, color="0.5", linewidth=0.8, linestyle=":", label="attention joins in")
    axes.set(xlabel="optimiser step", ylabel="nats per hidden gene")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path = Path(folder) / "loss.png"
    with replacing(path) as beside:
        figure.savefig(beside)
    return path


def _series(metrics: list[dict], name: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]
