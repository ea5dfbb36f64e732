"""Perturb-seq cells to the folder of a task: cells.h5ad, controls.h5ad, features.parquet, shards/ and task.json.

    mdsc prepare perturbation perturb_processed.h5ad --output-dir adamson/ --gene-embeddings genes.parquet
    mdsc prepare perturbation GSE90546/ --output-dir pilot/ --split leave-out SPI1
    mdsc prepare perturbation papalexi.h5ad --output-dir papalexi/ --perturbation-column perturbation_top --split folds

Reads GEARS' files (obs.condition), scPerturb's (obs.perturbation), folders of GEO's 10x files, and any h5ad file by the
columns that are named. Train with `--config configs/adamson_pca.yaml --data.dir adamson/shards`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from mdsc.atomic import alone, replacing
from mdsc.config.flags import parse_flags
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.errors import UserError
from mdsc.prep.gene_embeddings import read_embeddings
from mdsc.prep.h5ad import H5adConfig, prepare_h5ad
from mdsc.prep.perturbation_task import TaskOptions, make_task, perturbation_vectors

if TYPE_CHECKING:
    from anndata import AnnData

CELLS, CONTROLS, FEATURES, SHARDS, TASK = "cells.h5ad", "controls.h5ad", "features.parquet", "shards", "task.json"
CONTEXT_COLUMNS = ("cell_type", "batch")


@dataclass(frozen=True, kw_only=True)
class PerturbationConfig:
    input: tyro.conf.Positional[Path]
    """h5ad file, or folder of GEO's 10x files."""
    output_dir: Path
    """Folder for the task; replaced if it holds one."""
    gene_embeddings: Path | None = None
    """Vectors of genes by symbol, which mdsc prepare gene-embeddings writes or reads: without them no model can tell of
    a gene that it has not seen."""
    task: Annotated[TaskOptions, tyro.conf.arg(name="")] = field(default_factory=TaskOptions)
    """What the task is."""


def prepare_perturbation(config: PerturbationConfig, say: Callable[[str], None] = print) -> "AnnData":
    """Write the folder of the task, and give its cells."""
    if not config.input.exists():
        raise UserError(f"there is no file or folder {config.input}.")
    _check_output(config.output_dir, config.input)
    features = None if config.gene_embeddings is None else read_embeddings(config.gene_embeddings, say=say)
    task = make_task(config.input, config.task, features, say)
    options = {name: value for name, value in asdict(config.task).items() if value not in (None, ())}
    save_task(task, config.output_dir, features, {"options": options})
    return task


def save_task(
    task: "AnnData", folder: str | Path, features: LevelFeatures | None = None, about: dict | None = None
) -> None:
    """Write what `perturbation_task` gives, as the folder that train.py, sample.py and evaluate.py read.

    features: gene embeddings, of which features.parquet keeps all genes, and a row for each perturbation and the
    control. about: more to say in task.json.
    """
    from anndata import AnnData

    folder = Path(folder)
    _check_output(folder)
    told = dict(task.uns["task"])
    counts = task.obs[COLUMN].value_counts()
    varying = [name for name in CONTEXT_COLUMNS if name in task.obs and task.obs[name].nunique() > 1]
    with alone(folder), replacing(folder) as beside:
        beside.mkdir(parents=True)
        of_all = AnnData(task.X, obs=task.obs, var=task.var)
        of_all.write_h5ad(beside / CELLS, compression="gzip", compression_opts=1)
        controls = np.flatnonzero((task.obs[COLUMN] == CONTROL).to_numpy())
        of_all[controls].copy().write_h5ad(beside / CONTROLS, compression="gzip", compression_opts=1)
        if features is not None:
            write_features(_with_perturbations(features, sorted(counts.index)), beside / FEATURES)
            told["gene_embeddings"] = features.source
        prepare_h5ad(
            H5adConfig(
                inputs=(beside / CELLS,),
                output_dir=beside / SHARDS,
                condition_columns=(COLUMN, *varying),
                split_column="split",
            )
        )
        told |= {"num_cells": task.n_obs, "num_genes": task.n_vars, "condition_columns": [COLUMN, *varying]}
        told |= about or {}
        (beside / TASK).write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")


def _with_perturbations(features: LevelFeatures, perturbations: list[str]) -> LevelFeatures:
    """All genes, and the perturbations that are none: pairs (sums) and the control (0)."""
    found = perturbation_vectors(perturbations, features)
    more = [name for name in found if name not in set(features.names)]
    values = np.vstack([features.values, *(found[name][None] for name in more)])
    values[[row for row, name in enumerate(features.names) if name == CONTROL]] = 0
    return LevelFeatures((*features.names, *more), values, features.source)


def _check_output(folder: Path, source: Path | None = None) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the task (--output-dir).")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    own = {CELLS, CONTROLS, FEATURES, SHARDS, TASK} if (folder / TASK).is_file() else set()
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if strangers:
        raise UserError(
            f"{folder} holds other files, which would be lost ({', '.join(strangers[:3])}): give a new folder "
            "(--output-dir)."
        )
    if source is not None and source.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{source} lies in --output-dir {folder}, which is replaced as a whole: give another folder.")


def summary(task: "AnnData", folder: Path) -> str:
    """Two lines on what a task holds."""
    perturbed = task.obs[task.obs[COLUMN] != CONTROL]
    parts = [
        f"{part} {perturbed.loc[perturbed['split'] == part, COLUMN].nunique()}" for part in ("train", "val", "test")
    ]
    controls = task.obs["split"][task.obs[COLUMN] == CONTROL].value_counts()
    return (
        f"{folder}: {task.n_obs:,} cells x {task.n_vars:,} genes, {task.uns['task']['split']}\n"
        f"perturbations: {', '.join(parts)}; control cells: {controls.get('train', 0):,} for training, "
        f"{controls.get('test', 0):,} as unseen reference"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/adamson.py perturb_processed.h5ad --output-dir adamson/`"""
    config = parse_flags(PerturbationConfig, argv, __doc__)
    task = prepare_perturbation(config)
    print(summary(task, config.output_dir))
    if config.gene_embeddings is None:
        print("no --gene-embeddings: models will know these perturbations by name alone, and no others")
