"""Tables of the comparison of samplers: every distance, and the fewest evaluations that are as good as very many."""

import statistics
from collections.abc import Sequence

from result_tables import ResultTable, mean_and_sd

STANDARD_ERRORS = 3.0
"""A mean over seeds that is further above the reference's than so many is not within noise. A sampler is compared in
some 30 places (scores and numbers of evaluations): by chance alone one of them is beyond it for one sampler in 25."""
SCORES = ("mmd2", "marginal_tv", "zero_rate_error", "correlation_error", "depth_distance")


def all_tables(runs: list[dict], reference: tuple[str, int]) -> list[ResultTable]:
    """reference: variant and number of steps of the runs that the others are held against."""
    groups = list(dict.fromkeys((run["data"], run["task"]) for run in runs))
    of_group = {group: [run for run in runs if (run["data"], run["task"]) == group] for group in groups}
    summaries = [summary_table(of_group, reference)] if len({run["seed"] for run in runs}) > 1 else []
    return [*summaries, *(score_table(group, some, reference) for group, some in of_group.items())]


def summary_table(of_group: dict[tuple[str, str], list[dict]], reference: tuple[str, int]) -> ResultTable:
    variants = list(dict.fromkeys(run["variant"] for runs in of_group.values() for run in runs if run["steps"]))
    rows = []
    for variant in variants:
        found = [fewest(runs, variant, reference) for runs in of_group.values()]
        rows.append([variant, *("-" if steps is None else str(steps) for steps in found)])
    note = (
        "The fewest network evaluations that were tried from which on no distance's mean over seeds is more than "
        f"{STANDARD_ERRORS:g} standard errors above that of {reference[1]:,} {reference[0]} steps. -: none."
    )
    columns = ["sampler", *(f"{data}, {task}" for data, task in of_group)]
    return ResultTable("Fewest network evaluations within noise", columns, rows, note)


def fewest(runs: Sequence[dict], variant: str, reference: tuple[str, int]) -> int | None:
    """None where even the largest number of steps is not within noise."""
    excess = excesses(runs, variant, reference)
    within = None
    for steps in sorted(excess, reverse=True):
        if max(excess[steps].values()) > STANDARD_ERRORS:
            break
        within = steps
    return within


def excesses(runs: Sequence[dict], variant: str, reference: tuple[str, int]) -> dict[int, dict[str, float]]:
    """By number of steps and score: how many standard errors the mean over seeds lies above the reference's.

    The variance between seeds is that of all settings together: a few seeds of one setting do not tell it.
    """
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for run in runs:
        of_setting = values.setdefault((run["variant"], run["steps"]), {name: [] for name in run["scores"]})
        for name, score in run["scores"].items():
            of_setting[name].append(score)
    sampled = {setting: scores for setting, scores in values.items() if setting[1]}
    found: dict[int, dict[str, float]] = {}
    for (of_variant, steps), scores in sampled.items():
        # One evaluation is the same for all.
        if (of_variant != variant and steps != 1) or steps == reference[1]:
            continue
        found[steps] = {}
        for name, some in scores.items():
            variance = statistics.fmean(statistics.variance(others[name]) for others in sampled.values())
            error = (variance / len(some) + variance / len(sampled[reference][name])) ** 0.5
            found[steps][name] = (statistics.fmean(some) - statistics.fmean(sampled[reference][name])) / error
    return found


def score_table(group: tuple[str, str], runs: list[dict], reference: tuple[str, int]) -> ResultTable:
    scores = [name for name in SCORES if name in runs[0]["scores"]]
    rows = []
    # The largest number of steps first: what real cells and the reference have is what others are read against.
    settings = dict.fromkeys((run["variant"], run["steps"]) for run in runs)
    for variant, steps in sorted(settings, key=lambda setting: (setting[1] != 0, setting != reference)):
        some = [run for run in runs if (run["variant"], run["steps"]) == (variant, steps)]
        values = [mean_and_sd([run["scores"][score] for run in some]) for score in scores]
        speed, passes = "", ""
        if steps:
            speed = f"{sum(run['cells'] for run in some) / sum(run['cpu_seconds'] for run in some):.1f}"
            passes = f"{statistics.fmean(run['passes'] for run in some):.1f}"
        rows.append([variant, str(steps or ""), passes, *values, speed])
    columns = ["sampler", "steps", "passes", *scores, "cells/CPU s"]
    note = "Mean ± standard deviation over seeds. passes: forward passes of a cell that were needed."
    return ResultTable(f"{group[0]}: {group[1]}", columns, rows, note)
