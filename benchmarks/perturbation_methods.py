"""Both heads on one fold of a perturbation task: trained on its shards, asked for its test perturbations, scored."""

from pathlib import Path

import numpy as np
from conditions_simulated import train
from perturbation_tasks import Fold
from real_cells import ROOT

import mdsc
from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.level_features import write_features
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_scores import score
from mdsc.evaluation.perturb_task import PerturbTask, Prediction
from mdsc.evaluation.perturb_units import Unit
from mdsc.prep.h5ad import H5adConfig, prepare_h5ad

NUM_CELLS = 1000
"""Predicted for each unit: the means of fewer have noise of their own."""
EDITED = 0.9
"""Share of a control cell's genes that the masked model draws anew at once; it takes two passes for all of them."""
GAUSSIAN, GENERATED, EDITING = "gaussian", "masked, generated", "masked, edited"
HEADS = (GAUSSIAN, GENERATED, EDITING)
ORACLE = "Bayes-optimal"


def scored(fold: Fold, folder: Path, seed: int, head: str, flags: list[str]) -> dict:
    """Values of every metric for each unit and method (baselines too), as JSON keeps them."""
    shards, task = prepared(fold, folder), fold.task()
    run = folder / f"{head.replace(', ', '-')}-{seed}"
    if head == GAUSSIAN:
        checkpoint, options = gaussian(fold, shards, run, seed, flags), {}
    else:
        checkpoint = masked(fold, shards, folder / f"masked-{seed}", seed, flags)
        options = {} if head == GENERATED else {"edit_fraction": EDITED}
    predictions = [predicted(head, fold, task, checkpoint, seed, **options)]
    if fold.oracle is not None:
        predictions.append(Prediction.of_anndata(fold.oracle, task, "counts", name=ORACLE))
    return to_json(score(task, predictions, num_bootstrap=0))


def prepared(fold: Fold, folder: Path) -> Path:
    """Shards of the fold's cells, and features.parquet beside them."""
    shards = folder / "shards"
    if not (shards / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fold.cells.write_h5ad(folder / "cells.h5ad")
        columns = tuple(name for name in (COLUMN, fold.context, fold.batch) if name is not None)
        prepare_h5ad(
            H5adConfig(
                inputs=(folder / "cells.h5ad",), output_dir=shards, condition_columns=columns, split_column="split"
            )
        )
        if fold.features is not None:
            write_features(fold.features, folder / "features.parquet")
    return shards


def gaussian(fold: Fold, shards: Path, run: Path, seed: int, more: list[str]) -> Checkpoint:
    flags = ["--config", str(ROOT / "configs" / "adamson_pca.yaml"), *_common(fold, shards, run, seed)]
    flags += [] if fold.context is None else ["--gaussian.context-columns", fold.context]
    flags += [] if fold.batch is None else ["--gaussian.batch-column", fold.batch]
    training_cells = int((fold.cells.obs["split"] == "train").sum())
    flags += [] if "--gaussian.pca-size" in more else ["--gaussian.pca-size", str(min(50, training_cells // 25))]
    return train(parse(TrainConfig, [*flags, *more]))


def masked(fold: Fold, shards: Path, run: Path, seed: int, more: list[str]) -> Checkpoint:
    """Trained once for both ways of prediction."""
    if (run / "loss.png").is_file():
        return load_checkpoint(run)
    columns = [name for name in (COLUMN, fold.context, fold.batch) if name is not None]
    flags = ["--config", str(ROOT / "configs" / "adamson_masked.yaml"), *_common(fold, shards, run, seed)]
    flags += ["--data.condition-columns", *columns]
    return train(parse(TrainConfig, [*flags, *more]))


def _common(fold: Fold, shards: Path, run: Path, seed: int) -> list[str]:
    flags = ["--data.dir", str(shards), "--output-dir", str(run), "--seed", str(seed)]
    flags += ["--train.validate-every", "1000000", "--train.save-every", "1000000", "--train.keep-last", "1"]
    features = [] if fold.features is None else [f"{COLUMN}={shards.parent / 'features.parquet'}"]
    return [*flags, "--data.condition-features", *features]


def predicted(name: str, fold: Fold, task: PerturbTask, checkpoint: Checkpoint, seed: int, **options) -> Prediction:
    """Of all test units: NUM_CELLS each, from the control cells of their own context."""
    cells: dict[Unit, np.ndarray] = {}
    for context in sorted({unit.context for unit in task.units}):
        is_control = (fold.cells.obs[COLUMN] == CONTROL).to_numpy()
        if fold.context is not None:
            is_control &= (fold.cells.obs[fold.context] == context).to_numpy()
        units = [unit for unit in task.units if unit.context == context]
        found = mdsc.predict_perturbations(
            checkpoint,
            fold.cells[is_control].copy(),
            [unit.perturbation for unit in units],
            cells_per_perturbation=NUM_CELLS,
            seed=seed,
            **options,
        )
        assert found.var_names.tolist() == list(task.genes)
        for unit in units:
            rows = (found.obs[COLUMN] == unit.perturbation).to_numpy()
            values = found.X[rows]
            cells[unit] = np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32)
    return Prediction(name, cells)


def to_json(scores: PerturbScores) -> dict:
    values = {
        method: {metric: [None if np.isnan(value) else float(value) for value in row] for metric, row in rows.items()}
        for method, rows in scores.values.items()
    }
    units = [[unit.context, unit.perturbation] for unit in scores.units]
    return {"values": values, "units": units, "models": list(scores.models), "settings": dict(scores.settings)}


def of_json(found: dict, num_bootstrap: int) -> PerturbScores:
    values = {
        method: {metric: np.array(row, dtype=float) for metric, row in rows.items()}
        for method, rows in found["values"].items()
    }
    units = tuple(Unit(*pair) for pair in found["units"])
    return PerturbScores(
        units=units,
        values=values,
        models=tuple(found["models"]),
        settings=found["settings"],
        num_bootstrap=num_bootstrap,
    )
