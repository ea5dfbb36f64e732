"""Tables and picture of the race of backbones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from result_tables import ResultTable, mean_and_sd

from mdsc.atomic import replacing

RATIOS = ("0.2", "0.5", "0.8")
PLAIN = "no transformer"
AXES = {"step": "optimiser steps", "cpu_seconds": "CPU seconds", "flops": "floating-point operations"}


def all_tables(runs: Sequence[dict], references: dict[str, dict]) -> list[ResultTable]:
    """For each data set: the end on held-out cells, and the way there; then one of simulated sizes."""
    tables = []
    for data in dict.fromkeys(run["data"] for run in runs):
        of_data = [run for run in runs if run["data"] == data]
        tables += [end_table(data, of_data, references[data]), way_table(data, of_data)]
    simulated = [data for data in references if "oracle" in references[data]["nll"]]
    if len(simulated) > 1:
        tables.append(size_table(runs, {data: references[data] for data in simulated}))
    return tables


def end_table(data: str, runs: Sequence[dict], reference: dict) -> ResultTable:
    """nll of held-out cells by mask ratio; differences from the network without a backbone, paired by seed."""
    plain = {run["seed"]: run["nll"] for run in runs if run["backbone"] == PLAIN}
    rows = []
    for name in by_nll(runs):
        mine = [run for run in runs if run["backbone"] == name]
        nll = [mean_and_sd([run["nll"][ratio] for run in mine]) for ratio in RATIOS]
        paired = [run for run in mine if run["seed"] in plain and name != PLAIN]
        more = [run["nll"]["0.5"] - plain[run["seed"]]["0.5"] for run in paired]
        costs = (
            f"{_mean(mine, 'steps'):,.0f}",
            f"{_mean(mine, 'cpu_seconds'):.0f}",
            f"{_mean(mine, 'parameters'):,.0f}",
        )
        rows.append([name, *nll, mean_and_sd(more, signed=True) if more else "", *costs])
    for name, nll in sorted(reference["nll"].items(), key=lambda item: item[1]["0.5"]):
        row = [name, *(f"{nll[ratio]:.4f}" for ratio in RATIOS), "", "", "", ""]
        rows.insert(0, row) if name == "oracle" else rows.append(row)
    size = reference["sizes"]
    title = f"{data}: {size['train']:,} training cells x {size['genes']:,} genes"
    columns = ["", *(f"{float(r):.0%} hidden" for r in RATIOS), f"- {PLAIN} at 50%", "steps", "CPU s", "parameters"]
    seeds = len({run["seed"] for run in runs})
    note = f"nll in nats per hidden gene of held-out cells: mean ± standard deviation over {seeds} seeds of training."
    return ResultTable(title, columns, rows, note)


def way_table(data: str, runs: Sequence[dict]) -> ResultTable:
    """Validation nll (50% hidden) at equal steps, CPU seconds and operations: the most that all runs have reached."""
    names = by_nll(runs)
    ends = {axis: min(curve(run)[axis][-1] for run in runs) for axis in AXES}
    columns = [
        "",
        f"at {ends['step']:,.0f} steps",
        *(f"at {part * ends['cpu_seconds']:.0f} CPU s" for part in (0.25, 0.5, 1)),
        f"at {ends['flops']:.2g} FLOP",
        "ms a step",
        "GFLOP a step",
    ]
    rows = []
    for name in names:
        mine = [run for run in runs if run["backbone"] == name]
        whole = [run["flops"][1] / 1e9 for run in mine]
        last = [seconds_of_last_steps(run) for run in mine]
        rows.append(
            [
                name,
                mean_and_sd([at(run, "step", ends["step"]) for run in mine]),
                *(
                    mean_and_sd([at(run, "cpu_seconds", part * ends["cpu_seconds"]) for run in mine])
                    for part in (0.25, 0.5, 1)
                ),
                mean_and_sd([at(run, "flops", ends["flops"]) for run in mine]),
                f"{1000 * float(np.mean(last)):.0f}",
                f"{float(np.mean(whole)):.2f}",
            ]
        )
    note = (
        "Validation cells, 50% hidden, between validations by interpolation. A step is one after the pathway's phase."
    )
    return ResultTable(f"{data}: on the way", columns, rows, note)


def size_table(runs: Sequence[dict], references: dict[str, dict]) -> ResultTable:
    """How far each is from the best possible, by number of training cells."""
    rows = []
    for name in by_nll([run for run in runs if run["data"] in references]):
        row = [name]
        for data, reference in references.items():
            best = reference["nll"]["oracle"]["0.5"]
            row.append(
                mean_and_sd(
                    [run["nll"]["0.5"] - best for run in runs if run["data"] == data and run["backbone"] == name],
                    signed=True,
                )
            )
        rows.append(row)
    for name in ("svd", "gene_marginal"):
        excess = [nll["nll"][name]["0.5"] - nll["nll"]["oracle"]["0.5"] for nll in references.values()]
        rows.append([name, *(f"{value:+.4f}" for value in excess)])
    columns = ["", *(f"{reference['sizes']['train']:,} cells" for reference in references.values())]
    return ResultTable("Simulated cells: nll above the oracle's, 50% hidden", columns, rows)


def by_nll(runs: Sequence[dict]) -> list[str]:
    names = list(dict.fromkeys(run["backbone"] for run in runs))
    return sorted(names, key=lambda name: np.mean([run["nll"]["0.5"] for run in runs if run["backbone"] == name]))


def curve(run: dict) -> dict[str, np.ndarray]:
    """Step, CPU seconds, operations and validation nll at each validation."""
    points = {
        key: np.array([point[key] for point in run["points"]]) for key in ("step", "cpu_seconds", "validation_nll")
    }
    pathway = np.minimum(points["step"], run["pathway_steps"])
    points["flops"] = pathway * run["flops"][0] + (points["step"] - pathway) * run["flops"][1]
    return points


def at(run: dict, axis: str, place: float) -> float:
    points = curve(run)
    return float(np.interp(place, points[axis], points["validation_nll"]))


def seconds_of_last_steps(run: dict) -> float:
    one, other = run["points"][-2:]
    return (other["cpu_seconds"] - one["cpu_seconds"]) / (other["step"] - one["step"])


def plot(runs: Sequence[dict], path: Path) -> None:
    """Validation nll over each axis, a row for each data set: a thin line for each run, the last points as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    data = list(dict.fromkeys(run["data"] for run in runs))
    names = list(dict.fromkeys(run["backbone"] for run in runs))
    figure, axes = plt.subplots(len(data), 3, figsize=(13, 3.1 * len(data)), squeeze=False, layout="constrained")
    for row, of_data in zip(axes, data, strict=True):
        for panel, (axis, label) in zip(row, AXES.items(), strict=True):
            for number, name in enumerate(names):
                mine = [run for run in runs if run["data"] == of_data and run["backbone"] == name]
                for first, run in enumerate(mine):
                    points, color = curve(run), f"C{number}"
                    told = {"label": name} if first == 0 else {}
                    panel.plot(points[axis][1:], points["validation_nll"][1:], color=color, lw=1.2, alpha=0.8, **told)
                    panel.plot(points[axis][-1], points["validation_nll"][-1], "o", color=color, ms=3)
            mine = [run for run in runs if run["data"] == of_data]
            # The fall of the first quarter would leave no room for what differs.
            highest = max(at(run, "step", run["steps"] / 4) for run in mine)
            lowest = min(point["validation_nll"] for run in mine for point in run["points"])
            panel.set(xscale="log", xlabel=label, ylim=(lowest - 0.1 * (highest - lowest), highest))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3)
        row[0].set_ylabel(f"{of_data}\nnats per hidden gene")
    axes[0, 0].legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    plt.close(figure)


def _mean(runs: Sequence[dict], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))
