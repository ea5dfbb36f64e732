"""The tables of the benchmark over a whole transcriptome, from the scores of its runs."""

from collections.abc import Sequence

import numpy as np
from result_tables import ResultTable, mean_and_sd

METRICS = ("nll", "spearman_nonzero", "mae_log1p", "mae_log1p_median", "zero_rate_error", "crps")
LOWER = {"spearman_nonzero": False}
PUBLISHED = ("scvi", "scvi_refined", "scvi_masked", "magic", "alra")


def all_tables(runs: Sequence[dict], size: dict[str, int]) -> list[ResultTable]:
    where = f"{size['train']:,} training and {size['test']:,} test cells x {size['genes']:,} genes, 80% hidden"
    return [score_table(runs, where), difference_table(runs), cost_table(runs, size)]


def by_predictor(runs: Sequence[dict]) -> dict[str, dict[int, dict]]:
    """Predictor -> seed -> metrics. A model goes by the name of its run."""
    scores: dict[str, dict[int, dict]] = {}
    for run in runs:
        for name, metrics in run["scores"].items():
            scores.setdefault(run["method"] if name == "model" else name, {})[run["seed"]] = metrics
    return scores


def model_names(runs: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(run["method"] for run in runs if "model" in run["scores"]))


def score_table(runs: Sequence[dict], where: str) -> ResultTable:
    """By nll; those without a law after them, by spearman_nonzero. The best of each column in bold."""
    scores = by_predictor(runs)
    means = {name: {metric: mean_of(of_seed, metric) for metric in METRICS} for name, of_seed in scores.items()}
    best = {
        metric: (min if LOWER.get(metric, True) else max)(
            row[metric] for row in means.values() if row[metric] is not None
        )
        for metric in METRICS
    }

    def order(name: str) -> tuple[float, float]:
        return (np.inf if means[name]["nll"] is None else means[name]["nll"], -means[name]["spearman_nonzero"])

    rows = []
    for name in sorted(scores, key=order):
        cells = []
        for metric in METRICS:
            text = mean_and_sd([metrics[metric] for metrics in scores[name].values()])
            text = "n/a" if text == "-" else text
            cells.append(f"**{text}**" if means[name][metric] == best[metric] else text)
        rows.append([name, *cells, str(len(scores[name]))])
    note = "Mean ± standard deviation over seeds. n/a: predicts one count, and no law."
    return ResultTable(f"Scores: {where}", ("predictor", *METRICS, "seeds"), rows, note)


def difference_table(runs: Sequence[dict]) -> ResultTable:
    """The first model less each other predictor, seed by seed: below 0 the model is better, but in spearman_nonzero."""
    scores = by_predictor(runs)
    first = model_names(runs)[0]
    rows = []
    for name in (name for name in scores if name != first):
        pairs = [(scores[first][seed], of_other) for seed, of_other in scores[name].items() if seed in scores[first]]
        cells = []
        for metric in METRICS:
            differences = [ours[metric] - theirs[metric] for ours, theirs in pairs if theirs[metric] is not None]
            cells.append(mean_and_sd(differences, signed=True) if differences else "n/a")
        rows.append([f"{first} - {name}", *cells, str(len(pairs))])
    return ResultTable("Differences, paired by seed", ("", *METRICS, "seeds"), rows)


def cost_table(runs: Sequence[dict], size: dict[str, int]) -> ResultTable:
    """CPU seconds of one thread: training, expected counts of all cells, both; and the most memory of either."""
    rows = []
    for name in model_names(runs):
        of_name = [run for run in runs if run["method"] == name]
        train = [run["train"]["seconds"] for run in of_name]
        impute = [run["impute"]["model"] for run in of_name]
        peak = max(max(run["peak_gib"], run["train"]["peak_gib"]) for run in of_name)
        rows.append([name, *seconds(train, impute), f"{peak:.2f}"])
    for name in PUBLISHED:
        of_name = [run for run in runs if name in run.get("fit", {})]
        if of_name:
            fit = [run["fit"][name] for run in of_name]
            impute = [run["impute"].get(name, 0.0) for run in of_name]
            rows.append([name, *seconds(fit, impute), f"{max(run['peak_gib'] for run in of_name):.2f}"])
    if plain := [run for run in runs if run["method"] == "plain"]:
        rows.append(["plain baselines together", "", "", "", f"{max(run['peak_gib'] for run in plain):.2f}"])
    number = size["train"] + size["test"]
    columns = ("", "training, s", f"expected counts of {number:,} cells, s", "together, s", "peak memory, GiB")
    note = (
        "CPU seconds of one thread, mean over seeds. scvi_masked, magic and alra answer while they are fitted, for the "
        "cells they are fitted with alone. Memory is of training and of scoring, whichever is more."
    )
    return ResultTable("Time and memory", columns, rows, note)


def seconds(train: Sequence[float], impute: Sequence[float]) -> list[str]:
    return [f"{np.mean(values):.0f}" for values in (train, impute, np.add(train, impute))]


def mean_of(of_seed: dict[int, dict], metric: str) -> float | None:
    known = [metrics[metric] for metrics in of_seed.values() if metrics[metric] is not None]
    return float(np.mean(known)) if known else None
