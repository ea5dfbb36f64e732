"""`mdsc evaluate embed`, `python evaluate.py embed`: an embedding of cells scored by labels, beside PCA of counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdsc.config.flags import parse_flags
from mdsc.errors import UserError
from mdsc.evaluation.command_output import plain_console, versions, write_scores
from mdsc.evaluation.embedding_cells import EmbeddedCells, read_embedded
from mdsc.evaluation.embedding_scores import (
    EmbeddingScores,
    check_labels,
    difference,
    folds_of,
    pca_of,
    score_embedding,
)
from mdsc.evaluation.embedding_table import embedding_table, verdict
from mdsc.evaluation.report import check_report_path

PCA, FEW, DEPTH, PERMUTED = "pca_50", "pca_10", "depth", "permuted_labels"


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    input: Path
    """h5ad file with the embedding in obsm, labels in obs, and raw counts."""
    label: str
    """Column of obs with the labels, e.g. cell_type. Cells without one are left out."""
    key: str = "X_mdsc"
    """Where in obsm the embedding is."""
    batch: str | None = None
    """Column of obs, e.g. donor: how well its values are mixed."""
    train_split: str | None = None
    """Column of obs that is "train" for the cells that vote and that PCA is fitted on; the others are scored. By
    default all are, in five folds."""
    layer: str | None = None
    """Where the counts for PCA are: the name of a layer, or "raw"; by default X."""
    num_neighbours: int = 15
    """Training cells that vote on a cell's label."""
    seed: int = 0
    """Seeds folds and clusters."""
    json: Path | None = None
    """File for all scores, as JSON."""
    report: Path | None = None
    """HTML file that holds all of it, with pictures, to be read anywhere."""


def main(argv: Sequence[str]) -> None:
    embed(parse_flags(EmbedConfig, argv, __doc__, prog="mdsc evaluate embed"))


def embed(config: EmbedConfig) -> dict:
    """Score, print the table, write what was asked for; gives what the JSON holds."""
    console = plain_console()
    if config.num_neighbours < 1:
        raise UserError(f"--num-neighbours is {config.num_neighbours}; it takes 1 or more.")
    check_report_path(config.report, [".html"])
    columns = {"--label": config.label, "--batch": config.batch, "--train-split": config.train_split}
    cells = read_embedded(config.input, config.key, columns, layer=config.layer, say=console.print)
    scores = score_all(cells, num_neighbours=config.num_neighbours, seed=config.seed, say=console.print)
    gaps = {name: difference(scores[config.key], scores[name]) for name in (PCA, FEW)}
    said = [verdict(config.key, name, *gap) for name, gap in gaps.items()]
    console.print(embedding_table(scores, config.key), soft_wrap=False)
    for one in said:
        console.print(one.text)

    result = {
        "model": _json(scores[config.key]),
        "baselines": {name: _json(found) for name, found in scores.items() if name != config.key},
        "comparison": {
            name: {"accuracy_difference": gap, "standard_error": error} for name, (gap, error) in gaps.items()
        },
        "settings": _settings(config, cells),
    }
    write_scores(result, config.json, console.print)
    if config.report is not None:
        from mdsc.evaluation.embedding_report import embedding_report

        embedding_report(cells, scores, config.key, said, result["settings"]).save(config.report)
        console.print(f"wrote {config.report}")
    return result


def score_all(
    cells: EmbeddedCells, *, num_neighbours: int = 15, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> dict[str, EmbeddingScores]:
    """The embedding by its key, then PCA of the counts (50 components, and the first 10 of these, which have less
    noise), depth alone, and the embedding with labels shuffled."""
    check_labels(cells.labels, dict(enumerate(cells.label_names)), cells.is_train)
    folds = folds_of(cells.labels, cells.is_train, seed)
    shuffled = np.random.default_rng(seed).permutation(cells.labels)
    options = {"num_neighbours": num_neighbours, "seed": seed}
    depth = np.log1p(np.asarray(cells.counts.sum(axis=1), dtype=np.float64))
    pca, found = pca_of(cells.counts), {}
    for name, points, labels in (
        (cells.key, cells.points, cells.labels),
        (PCA, pca, cells.labels),
        (FEW, lambda rows: pca(rows)[:, :10], cells.labels),
        (DEPTH, depth.reshape(-1, 1), cells.labels),
        (PERMUTED, cells.points, shuffled),
    ):
        say(f"scoring {name}")
        found[name] = score_embedding(points, labels, folds, batches=cells.batches, **options)
    return found


def _json(scores: EmbeddingScores) -> dict:
    def finite(values: dict[str, float]) -> dict[str, float | None]:
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    return {**finite(scores.metrics), "standard_error": finite(scores.standard_error)}


def _settings(config: EmbedConfig, cells: EmbeddedCells) -> dict:
    return {
        "input": str(config.input),
        "key": config.key,
        "dimensions": cells.points.shape[1],
        "label": config.label,
        "labels": list(cells.label_names),
        "batch": config.batch,
        "train_split": config.train_split,
        "cells": len(cells.labels),
        "cells_left_out": cells.left_out,
        "genes": cells.counts.shape[1],
        "num_neighbours": config.num_neighbours,
        "seed": config.seed,
        "versions": versions("numpy", "scipy", "scikit-learn"),
    }
