"""`sample.py --perturbation`: an h5ad file of cells under perturbations, one perturbation in memory at a time."""

import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from mdsc.atomic import alone
from mdsc.checkpoint import given_or_newest
from mdsc.data.h5ad_writer import H5adWriter
from mdsc.data.level_features import feature_files
from mdsc.data.perturbations import COLUMN
from mdsc.data.row_group_checks import first_line
from mdsc.errors import UserError
from mdsc.progress import lines_on_console
from mdsc.sampling.anndata_cells import listed_genes
from mdsc.sampling.anndata_files import check_output
from mdsc.sampling.anndata_prediction import CONTROL_CELL, MOST_ROWS, Prediction, matrices_of
from mdsc.sampling.command import SampleConfig
from mdsc.sampling.conditions import condition_pairs
from mdsc.sampling.predicted_cells import PredictedCells, read_controls

TYPES = {"X": np.float32, "counts": np.int32, "expected": np.float32}


def predict(config: SampleConfig) -> Path:
    """Do it, and give the path of the file that was written."""
    say = lines_on_console()
    _check(config)
    folder = given_or_newest(config.checkpoint, say)
    is_local = config.checkpoint is None or Path(config.checkpoint).is_dir()
    output = config.output or (folder / "predicted.h5ad" if is_local else Path("predicted.h5ad"))
    if config.output is None:
        say(f"--output is not given: writing {output}")
    started = time.monotonic()
    prediction = Prediction.of(
        folder,
        read_controls(config.input, config.layer, str(config.input), say),
        perturbations=tuple(listed_genes(config.perturbation, "--perturbation")),
        condition=condition_pairs(chain(*config.condition)),
        features=feature_files(config.condition_features, "--condition-features"),
        guidance=config.guidance,
        seed=config.seed,
        options=config.prediction,
        sampling=config.sampling,
        passes=config.passes,
        say=say,
    )
    if output.exists():
        say(f"{output} is there already: it will be replaced when all cells are done")
    try:
        with alone(output), prediction.progress(show=True) as progress:
            portions = prediction.portions(progress)
            first = next(portions)
            num_cells, num_perturbations = _write(prediction, output, first, chain([first], portions))
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror or first_line(error)}.") from error
    say(
        f"wrote {output}: {num_cells:,} cells of {num_perturbations:,} perturbations, and "
        f"{len(prediction.controls.obs):,} control cells, x {len(first.columns):,} genes "
        f"({time.monotonic() - started:.0f} s)"
    )
    return output


def _write(
    prediction: Prediction, output: Path, first: PredictedCells, portions: Iterator[PredictedCells]
) -> tuple[int, int]:
    """Numbers of cells and perturbations that were predicted."""
    var = prediction.var_of(first)
    matrices = {name: TYPES[name] for name in matrices_of(first)}
    dense = [name for name, matrix in matrices_of(first).items() if isinstance(matrix, np.ndarray)]
    columns = (COLUMN, *prediction.contexts, CONTROL_CELL)
    names = var.index.tolist()
    num_cells = num_perturbations = 0
    with H5adWriter(
        output, columns, dict(var.items()), names, {"mdsc": prediction.about()}, matrices=matrices, dense=dense
    ) as writer:

        def write(cells: PredictedCells, cell_names: list[str]) -> None:
            layers = matrices_of(cells)
            writer.write(layers.pop("X"), prediction.obs_of(cells.perturbation, cells.rows), cell_names, layers)

        obs_names = prediction.controls.obs.index.astype(str).tolist()
        for start in range(0, len(obs_names), MOST_ROWS):
            rows = slice(start, min(start + MOST_ROWS, len(obs_names)))
            write(prediction.control_cells(first, rows), obs_names[rows])
        for cells in portions:
            write(cells, prediction.names_of(cells))
            num_cells, num_perturbations = num_cells + len(cells.rows), num_perturbations + 1
    return num_cells, num_perturbations


def _check(config: SampleConfig) -> None:
    """What can be told before anything is read."""
    if config.input is None:
        raise UserError("--perturbation predicts cells from control cells: give them by --input controls.h5ad.")
    if config.output is not None:
        check_output(config.output, config.input)
    for flag, value, instead in (
        ("--mask-ratio", config.mask_ratio, "give --edit-fraction"),
        ("--impute-zeros", config.impute_zeros or None, "leave it out"),
        ("--num-cells", config.num_cells, "give --cells-per-perturbation"),
        ("--genes", config.genes, "the genes are those of the input"),
        ("--conditions-from", config.conditions_from, "conditions come from the input's obs"),
        ("--seen-under", config.seen_under or None, "control cells are read as such"),
        ("--quantiles", config.answer.quantiles, "leave it out"),
        ("--num-draws", None if config.answer.num_draws == 1 else config.answer.num_draws, "leave it out"),
    ):
        if value is not None:
            raise UserError(f"{flag} does not go with --perturbation: {instead}.")
