"""A few hundred perturbed cells with known effects, as shards with gene embeddings; options of a tiny Gaussian head."""

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.genes import GeneVocabulary
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.data.shard_writer import ShardWriter
from mdsc.data.shards import ShardFolder

NUM_GENES = 40
PERTURBED = [f"G{number}" for number in range(8)]
HELD_OUT = "G7"
VALIDATION = "G6"
CONTEXTS = ("T", "B")


def embeddings() -> LevelFeatures:
    values = np.random.default_rng(3).normal(size=(len(PERTURBED) + 2, 4))
    return LevelFeatures((*PERTURBED, "G8", "G9"), values, "embeddings")


def perturbed_counts(
    cells_of_each: int = 24, *, seed: int = 0, contexts: tuple[str, ...] = ("T",)
) -> tuple[sp.csr_matrix, dict[str, list[str]]]:
    """Poisson counts whose log mean moves along the embedding; labels perturbation, cell_type, batch and split."""
    rng = np.random.default_rng(seed)
    features = dict(zip(embeddings().names, embeddings().values, strict=True))
    direction = np.random.default_rng(4).normal(size=(4, NUM_GENES)) * 0.5
    level = rng.gamma(2.0, 1.5, size=NUM_GENES)
    shift_of_type = {name: np.random.default_rng(number).normal(size=NUM_GENES) for number, name in enumerate(contexts)}
    counts, labels = [], {"perturbation": [], "cell_type": [], "batch": [], "split": []}
    for name in ("ctrl", *PERTURBED):
        for context in contexts:
            number = cells_of_each * (3 if name == "ctrl" else 1)
            log_mean = (
                np.log(level) + 0.3 * shift_of_type[context] + (0 if name == "ctrl" else features[name] @ direction)
            )
            counts.append(rng.poisson(np.exp(log_mean) * rng.gamma(8, 1 / 8, size=(number, 1))))
            labels["perturbation"] += [name] * number
            labels["cell_type"] += [context] * number
            labels["batch"] += [f"b{cell % 2}" for cell in range(number)]
            labels["split"] += [{HELD_OUT: "test", VALIDATION: "val"}.get(name, "train")] * number
    order = rng.permutation(len(labels["split"]))
    return sp.csr_matrix(np.concatenate(counts).astype(np.int32)[order]), {
        name: [values[place] for place in order] for name, values in labels.items()
    }


def perturbed_shards(folder: Path, **options) -> ShardFolder:
    """folder/shards and folder/features.parquet."""
    counts, labels = perturbed_counts(**options)
    names = [f"cell {number}" for number in range(counts.shape[0])]
    columns = ["perturbation", "cell_type", "batch"]
    split = np.array(labels["split"])
    vocabulary = GeneVocabulary.of([f"G{number}" for number in range(NUM_GENES)])
    with ShardWriter(folder / "shards", vocabulary, columns) as writer:
        for part in ("train", "val", "test"):
            rows = np.flatnonzero(split == part)
            conditions = {name: [labels[name][row] for row in rows] for name in columns}
            writer.write(part, counts[rows], conditions, [names[row] for row in rows])
    write_features(embeddings(), folder / "features.parquet")
    return ShardFolder.open(folder / "shards")


def gaussian_flags(folder: Path, *more: str) -> list[str]:
    """Of a run that takes a second, on the shards of `perturbed_shards`."""
    options = {
        "head": "gaussian",
        "data.dir": folder / "shards",
        "data.condition-features": f"perturbation={folder / 'features.parquet'}",
        "output-dir": folder / "run",
        "gaussian.batch-column": "batch",
        "gaussian.pca-size": 6,
        "gaussian.width": 16,
        "gaussian.num-layers": 1,
        "gaussian.set-size": 8,
        "gaussian.num-steps": 3,
        "train.max-steps": 6,
        "train.global-batch-size": 32,
        "train.learning-rate": 1e-2,
        "train.warmup-steps": 2,
        "train.log-every": 1,
        "train.validate-every": 3,
        "train.save-every": 3,
        "validation.num-cells": 40,
    }
    given = {text.removeprefix("--") for text in more}
    named = [text for name, value in options.items() if name not in given for text in (f"--{name}", str(value))]
    (folder / "empty.yaml").touch()
    return ["--config", str(folder / "empty.yaml"), *named, *more]


def gaussian_config(folder: Path, *more: str) -> TrainConfig:
    return parse(TrainConfig, gaussian_flags(folder, *more))
