"""Tables of benchmarks/perturbation_faults.py."""

import statistics
from collections.abc import Sequence

import numpy as np
from perturbation_fault_figures import NONE, OTHER, OWN, SET_LOSSES
from perturbation_methods import of_json
from result_tables import ResultTable, mean_and_sd

from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_units import Unit
from mdsc.perturbation.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS

METRICS = {"pearson_delta": "PearsonDelta", "pearson_delta_pert": "-pert", "e_distance": "E-distance", "mmd2": "MMD2"}
DEFAULT = f"{DEFAULT_SAMPLER} {DEFAULT_STEPS}"
NUM_BOOTSTRAP = 2000


def all_tables(results: dict, long_steps: int) -> list[ResultTable]:
    runs = results["runs"]
    tables = [_methods(runs), _noise(runs), _permuted(results["permuted noise"]), _floors(results["floors"])]
    return [*tables, _axes(runs), _walks(results["walks"], f"ddpm {long_steps}")]


def _methods(runs: list[dict]) -> ResultTable:
    first = runs[0]["scores"]
    rows = []
    for method in first["values"]:
        seconds = [run["seconds"][method] for run in runs if method in run["seconds"]]
        cells = [_over_runs(runs, method, metric) for metric in METRICS]
        rows.append([method, *cells, f"{statistics.fmean(seconds):.1f}" if seconds else "-"])
    training = ", ".join(
        f"{name} {statistics.fmean(run['training seconds'][name] for run in runs):.0f} s"
        for name in runs[0]["training seconds"]
    )
    settings = first["settings"]
    spread = f"± standard deviation over {len(runs)} simulations, each with a training of its own"
    if len(runs) == 1:
        spread = "one simulation, with a 95% interval of bootstrap over perturbations"
    return ResultTable(
        "The parent's way and ours, on perturbations that no training cell had",
        ["method", *METRICS.values(), "s"],
        rows,
        f"Mean over {settings['test_perturbations']} test perturbations; {spread}. By the harness of "
        "`mdsc evaluate perturb`, in gene space. oracle: who knows all that an embedding can tell; split_half: real "
        "cells against other real cells. -pert of what is the same for all perturbations is not defined (-). s: of "
        f"drawing, all test perturbations. Training: {training}. All but ddpm draw cells in pairs of opposite noise, "
        "which makes an E-distance of few cells too small: the last table has what that is worth.",
    )


def _over_runs(runs: list[dict], method: str, metric: str) -> str:
    if len(runs) > 1:
        return mean_and_sd([_mean(run["scores"]["values"][method][metric]) for run in runs])
    found = of_json(runs[0]["scores"], NUM_BOOTSTRAP).estimate(method, metric)
    if found is None:
        return "-"
    return f"{found.mean:.4f}" + ("" if found.interval is None else " ({:.4f} to {:.4f})".format(*found.interval))


def _noise(runs: list[dict]) -> ResultTable:
    names = [OWN, OTHER, NONE, "floor", "floor, perturbation known"]
    rows = [
        [where, *(mean_and_sd([run["noise errors"][where][name] for run in runs]) for name in names)]
        for where in runs[0]["noise errors"]
    ]
    return ResultTable(
        "The error of the noise tells little of what was learnt",
        ["perturbations", "vector: its own", "another's", "none", "floor", "floor, known"],
        rows,
        "Mean squared error of the noise at the end of the parent's training, on perturbed cells, with the vector of "
        "their gene, that of another perturbation, and none (the parent is always told one in training: none is new "
        "to it). floor: of the best denoiser that knows no condition, if latents were independent and normal "
        "(`mdsc.perturbation.targets.epsilon_floor` of their variances); they are neither, so a denoiser can be below "
        "it. floor, known: the same for each perturbation's own law: the difference is all that knowing the "
        "perturbation can take off this loss.",
    )


def _permuted(found: dict) -> ResultTable:
    columns = ["squared error", *SET_LOSSES]
    rows = [[str(size), *(f"{round(one[name], 4) + 0.0:.4f}" for name in columns)] for size, one in found.items()]
    return ResultTable(
        "True noise, but each cell another cell's",
        ["cells of a set", *columns],
        rows,
        "Losses of a network that gives the true noise in another order, and so knows nothing of its input. The "
        "biased set losses, the parent's among them, are 0, their best value; the unbiased ones are below what a "
        "perfect network has in the mean. Giving 0 always has a squared error of 1.",
    )


def _floors(found: dict) -> ResultTable:
    rows = [[str(size), *(f"{one[name]:+.4f}" for name in SET_LOSSES)] for size, one in found.items()]
    return ResultTable(
        "Two independent sets of one law",
        ["cells of a set", *SET_LOSSES],
        rows,
        "Set losses between sets of N(0, I) noise, mean of 64 pairs: the biased ones are never 0, and fall with the "
        "number of cells, so that batches of another size are no match. energy: half of the energy distance.",
    )


def _axes(runs: list[dict]) -> ResultTable:
    rows = [
        [reader, *(mean_and_sd([run["own axes"][reader][name] for run in runs]) for name in keys)]
        for keys in [("error", "pearson_delta", "pert")]
        for reader in runs[0]["own axes"]
        if reader != "axes"
    ]
    axes = [run["own axes"]["axes"] for run in runs]
    return ResultTable(
        "Real cells of test perturbations, read by one PCA and decoded by that of training",
        ["PCA fitted on", "error / variance", "PearsonDelta", "-pert"],
        rows,
        "No model: the very cells that are to be predicted. Of the first "
        f"{axes[0]['of']} axes of the two PCAs, place by place: mean |cosine| "
        f"{mean_and_sd([one['cosine'] for one in axes])}, reversed {', '.join(str(one['reversed']) for one in axes)}. "
        "In the first table only the unperturbed cells are read so, as the rest is known without: centres are decoded "
        "by the PCA of training, and what it leaves out is kept.",
    )


def _walks(drawn: list[dict], reference: str) -> ResultTable:
    scores = _averaged(drawn)
    seconds = {name: statistics.fmean(one["seconds"][name] for one in drawn) for name in scores.models}
    rows = []
    for name in scores.models:
        of_seeds = {metric: [_mean(one["values"][name][metric]) for one in drawn] for metric in METRICS}
        rows.append(
            [
                name,
                *(mean_and_sd(of_seeds[metric]) for metric in ("pearson_delta", "pearson_delta_pert", "e_distance")),
                "-" if name == reference else _difference(scores, name, reference, "pearson_delta"),
                "-" if name == reference else _difference(scores, name, reference, "e_distance"),
                f"{seconds[name]:.2f}",
                f"{seconds[reference] / seconds[name]:.1f}",
            ]
        )
    columns = [
        "sampler, steps", "PearsonDelta", "-pert", "E-distance", f"PearsonDelta less {reference}'s",
        "E-distance less", "s", "times faster",
    ]  # fmt: skip
    return ResultTable(
        "Steps against quality",
        columns,
        rows,
        f"Our head of the first simulation, {len(scores.units)} test perturbations, mean ± standard deviation over "
        f"{len(drawn)} seeds of control cells and noise. Differences: mean over seeds and perturbations, with a 95% "
        "interval of paired bootstrap over perturbations. s: of drawing alone, all of these cells. "
        "opposite pairs: of noise, as `sample.py` has them, which makes an E-distance of few cells too small. "
        f"{DEFAULT} is the default. heun_edm looks twice a step, but for the last.",
    )


def _averaged(drawn: list[dict]) -> PerturbScores:
    """Each unit's value is the mean over the seeds of sampling."""
    names = list(drawn[0]["seconds"])
    values = {
        name: {
            metric: np.mean([np.array(one["values"][name][metric], float) for one in drawn], axis=0)
            for metric in METRICS
        }
        for name in names
    }
    units = tuple(Unit(*pair) for pair in drawn[0]["units"])
    return PerturbScores(units, values, tuple(names), {}, num_bootstrap=NUM_BOOTSTRAP)


def _difference(scores: PerturbScores, name: str, reference: str, metric: str) -> str:
    found = scores.difference(name, reference, metric)
    if found is None:
        return "-"
    interval = "" if found.interval is None else f" ({found.interval[0]:+.4f} to {found.interval[1]:+.4f})"
    return f"{found.mean:+.4f}{interval}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
