"""A run that takes a second: a small folder of simulated shards, and options that fit it."""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from simulated_shards import simulated_counts, write_shards

from mdsc.config.schema import DataConfig, ModelConfig, OptimConfig, TrainConfig, ValidationConfig
from mdsc.data.loader import CellLoader
from mdsc.data.shard_statistics import shard_statistics
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.model.initialisation import build_model
from mdsc.training.masked_task import MaskedTask
from mdsc.training.progress import RunProgress
from mdsc.training.tracking import Tracker
from mdsc.training.trainer import Trainer

NUM_GENES = 48


def tiny_shards(folder: Path) -> ShardFolder:
    return write_shards(folder / "shards", simulated_counts(240, NUM_GENES, mean=2.0))


def tiny_config(folder: Path, **train) -> TrainConfig:
    """Options for the shards in `folder`; keywords are options of `train`."""
    options = {"max_steps": 6, "global_batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 2, "log_every": 1}
    return TrainConfig(
        data=DataConfig(dir=str(folder / "shards"), num_lanes=4, validation_fraction=0.2, prefetch=0),
        model=ModelConfig(hidden_size=16, num_layers=1, num_heads=2, state_size=4, factor_size=8),
        train=OptimConfig(**(options | {"precision": "fp32"} | train)),
        validation=ValidationConfig(num_cells=24),
        output_dir=str(folder / "run"),
    )


def flags(config: TrainConfig) -> list[str]:
    """The options as a command line would give them."""
    data, model, train = config.data, config.model, config.train
    values = {
        "data.dir": data.dir,
        "data.num-lanes": data.num_lanes,
        "data.validation-fraction": data.validation_fraction,
        "model.hidden-size": model.hidden_size,
        "model.num-layers": model.num_layers,
        "model.num-heads": model.num_heads,
        "model.state-size": model.state_size,
        "model.factor-size": model.factor_size,
        "train.max-steps": train.max_steps,
        "train.global-batch-size": train.global_batch_size,
        "train.learning-rate": train.learning_rate,
        "train.warmup-steps": train.warmup_steps,
        "train.pathway-steps": train.pathway_steps,
        "train.log-every": train.log_every,
        "validation.num-cells": config.validation.num_cells,
        "output-dir": config.output_dir,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def tiny_trainer(config: TrainConfig, *, tracker: Tracker | None = None) -> tuple[Trainer, CellLoader]:
    """A trainer in this process, and its loader."""
    folder = ShardFolder.open(config.data.dir)
    tokenizer = make_tokenizer(config.tokenizer.name)
    statistics = shard_statistics(
        folder, tokenizer, rank=config.model.factor_size, validation_fraction=config.data.validation_fraction
    )
    tokenizer = tokenizer.with_values(statistics.token_mean_count)
    loader = CellLoader(
        folder, tokenizer, config.data, seed=config.seed, global_batch_size=config.train.global_batch_size
    )
    torch.manual_seed(config.seed)
    model, accelerator = build_model(config.model, tokenizer, statistics), Accelerator(cpu=True)
    task = MaskedTask(config, accelerator, model, tokenizer, loader.validation_batch(config.validation.num_cells))
    progress = RunProgress(config.train.max_steps, show=False)
    return Trainer(config, accelerator, model, task, progress=progress, tracker=tracker), loader


def with_train(config: TrainConfig, **changes) -> TrainConfig:
    return replace(config, train=replace(config.train, **changes))
