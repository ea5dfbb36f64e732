"""On real cells: are the errors of `mdsc likelihood` as large as they say, and what do genes tell of one another?"""

from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
from result_tables import ResultTable, mean_and_sd
from scipy import stats

from mdsc.sampling.anndata_likelihood import likelihood_anndata

NUM_CELLS = 200
PAIRS = (
    (("NKG7",), ("CD79A",)),
    (("NKG7",), ("GNLY",)),
    (("NKG7",), ("GNLY", "GZMB", "PRF1", "CST7")),
    (("CD79A",), ("CD79B", "MS4A1")),
    (("LYZ",), ("S100A8", "S100A9")),
)
"""A target and what is given: of blood cells, of one kind of cell but for the first."""


def error_check(run: Path, test: Path, num_samples: int) -> dict[str, float]:
    """The same cells with two seeds. A difference over its two errors has a mean square of one if they are right."""
    cells = anndata.read_h5ad(test)[:NUM_CELLS].copy()
    one, other = (likelihood_anndata(run, cells, num_samples=num_samples, seed=seed).obs for seed in (0, 1))
    z = (one["mdsc_nll"] - other["mdsc_nll"]) / np.hypot(one["mdsc_nll_se"], other["mdsc_nll_se"])
    bound = stats.t.ppf(0.95, num_samples - 2)
    return {
        "error": float(np.sqrt((one["mdsc_nll_se"] ** 2).mean())),
        "z": float(np.sqrt((z**2).mean())),
        "within": float((z.abs() < bound).mean()),
    }


def informations(run: Path, test: Path) -> dict[str, list[float]]:
    """Of each pair: mean -log p(target | given), mean information, and its standard error over cells."""
    cells = anndata.read_h5ad(test)
    found = {}
    for target, given in PAIRS:
        if {*target, *given} <= set(cells.var_names):
            obs = likelihood_anndata(
                run, cells, target_genes=target, given_genes=given, information=True, num_samples=4
            ).obs
            information = obs["mdsc_information"]
            error = information.std() / len(information) ** 0.5
            found[f"{', '.join(target)} given {', '.join(given)}"] = [
                float(value) for value in (obs["mdsc_nll"].mean(), information.mean(), error)
            ]
    return found


def error_table(checks: dict[str, Sequence[dict]], num_samples: int) -> ResultTable:
    rows = [
        [name, *(mean_and_sd([run[metric] for run in runs]) for metric in ("error", "z", "within"))]
        for name, runs in checks.items()
    ]
    return ResultTable(
        f"Errors of single cells, {num_samples} draws, {NUM_CELLS} cells scored with two seeds",
        ["data", "root mean square error as told", "root mean square z", "within 90% intervals"],
        rows,
        "z: difference of the two scores over the error of the difference; 1 and 90% if errors are what they say.",
    )


def information_table(found: dict[str, Sequence[dict]]) -> ResultTable:
    rows = []
    for name, runs in found.items():
        for pair in runs[0]:
            values = [[run[pair][place] for run in runs if pair in run] for place in range(3)]
            rows.append([f"{name}: {pair}", *map(mean_and_sd, values)])
    return ResultTable(
        "What genes tell of one another, nats per target gene",
        ["genes", "-log p(target given)", "information", "its error over cells"],
        rows,
        "Information: mean over test cells of log p(target given) - log p(target).",
    )
