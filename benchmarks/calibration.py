"""Is a model as sure of hidden counts as it may be? PIT and coverage on held-out cells, beside the baselines.

    python benchmarks/calibration.py --markdown calibration.md --plot calibration.png

Trains and scores as `benchmarks/inpaint.py` does, into the same folders: what one has done, the other takes over.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from finished_steps import once
from inpaint import MASK_RATIOS, BenchmarkConfig, run_once, split_step
from real_cells import ROOT, shared_file, split_paths
from result_tables import ResultTable, mean_and_sd, write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.errors import UserError
from mdsc.evaluation.calibration import EXPECTED_COUNT, GROUPS, PIT_BINS
from mdsc.evaluation.inpaint import MODEL

BAND = (0.88, 0.92)
"""Where the coverage of 90% intervals should be."""
WHERE = {GROUPS[0]: "all hidden positions", GROUPS[1]: f"where the predictor expects {EXPECTED_COUNT:g} or more"}
METRICS = {
    "coverage_50": "50%",
    "coverage_90": "90%",
    "pit_error": "pit error",
    "interval_90_coverage": "plain 90%: holds",
    "interval_90_claimed": "should hold",
    "interval_90_width": "width",
}
DRAWN = (MODEL, "svd", "knn", "gene_marginal")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    data: str = "pbmc3k"
    """Data set: name of a file in shared/data, without .h5ad."""
    tokenizer: str = "rank"
    """Tokenizer of the model."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training, of what is hidden and of the pooled baseline."""
    num_genes: int = 2000
    """The most variable genes, chosen on the training cells."""
    config: Path = ROOT / "configs" / "benchmark.yaml"
    """Options of training."""
    pooled_steps: int = 3000
    """Optimiser steps of the attention-free baseline `pooled`; 0 leaves it out."""
    work_dir: Path = Path("runs/benchmark")
    """Folder for cells, runs and scores; that of benchmarks/inpaint.py serves."""
    json: Path | None = None
    """File for the calibration of all runs."""
    markdown: Path | None = None
    """File for the tables."""
    plot: Path | None = None
    """PNG file for the PIT."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(CalibrationConfig, args=argv, description=__doc__)
    if (source := shared_file(f"{config.data}.h5ad")) is None:
        raise UserError(f"--data: there is no shared/data/{config.data}.h5ad beside the repository.")
    folder = config.work_dir.resolve() / config.data
    size = once(folder / "split.json", *split_step(source, folder, config.num_genes))["result"]
    options = BenchmarkConfig(config=config.config, pooled_steps=config.pooled_steps, work_dir=config.work_dir)
    runs = []
    for seed in config.seeds:
        print(f"{config.data}, {config.tokenizer}, seed {seed}", flush=True)
        run_folder = folder / f"{config.tokenizer}-seed{seed}"
        scores = run_once(options, run_folder, split_paths(folder, size), config.tokenizer, seed, [])["scores"]
        runs.append(calibration_by_predictor(scores))
    tables = [table(runs, ratio, group) for ratio in MASK_RATIOS for group in GROUPS]
    for one in tables:
        one.show()
    print(verdict(runs))
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps({"size": size, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        write_markdown(config.markdown, "Calibration", verdict(runs), tables)
    if config.plot is not None:
        draw(runs, config.plot)


def calibration_by_predictor(scores: dict) -> dict[str, dict[str, dict]]:
    """{predictor: {ratio: {group: {metric: value}}}}; point predictors have none."""
    by_name = {MODEL: scores[MODEL], **scores["baselines"]}
    found = {
        name: {ratio: of_ratio.get("calibration") for ratio, of_ratio in by_ratio.items()}
        for name, by_ratio in by_name.items()
    }
    return {name: by_ratio for name, by_ratio in found.items() if all(by_ratio.values())}


def table(runs: Sequence[dict], ratio: str, group: str) -> ResultTable:
    rows = [
        [name, *(mean_and_sd([run[name][ratio][group][metric] for run in runs]) for metric in METRICS)]
        for name in runs[0]
    ]
    return ResultTable(f"{float(ratio):.0%} hidden, {WHERE[group]}", ("predictor", *METRICS.values()), rows)


def verdict(runs: Sequence[dict]) -> str:
    """Of the model, over all seeds and mask ratios."""
    said = []
    for group in GROUPS:
        found = [run[MODEL][ratio][group]["coverage_90"] for run in runs for ratio in MASK_RATIOS]
        inside = all(BAND[0] <= value <= BAND[1] for value in found)
        said.append(
            f"{WHERE[group]}: 90% intervals of the model cover {min(found):.1%} to {max(found):.1%} of the hidden "
            f"counts, {'all' if inside else 'NOT all'} within {BAND[0]:.0%} to {BAND[1]:.0%}."
        )
    return "\n".join(said)


def draw(runs: Sequence[dict], path: Path) -> None:
    """Mean PIT histograms, a row for each group of positions, a column for each predictor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratio = MASK_RATIOS[-1]
    figure = Figure(figsize=(12, 5.4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(GROUPS), len(DRAWN), sharex=True, sharey="row", squeeze=False)
    centres = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    for axes, name in zip(panels[0], DRAWN, strict=True):
        axes.set_title(name.replace("_", " "))
    for row, group in zip(panels, GROUPS, strict=True):
        for axes, name in zip(row, DRAWN, strict=True):
            pit = np.array([run[name][ratio][group]["pit"] for run in runs], dtype=float) * PIT_BINS
            axes.bar(centres, pit.mean(axis=0), 1 / PIT_BINS, color="#c1272d" if name == MODEL else "0.65")
            axes.axhline(1, color="black", linewidth=1)
            axes.set_xlim(0, 1)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("density, " + ("all hidden" if group == GROUPS[0] else "1 or more expected"))
    figure.suptitle(f"PIT of hidden counts, {float(ratio):.0%} hidden, mean of {len(runs)} seeds; right laws are flat")
    with replacing(path) as beside:
        figure.savefig(beside)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
