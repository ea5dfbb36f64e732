"""Numbers that a run cannot start with, found before anything is read."""

from pathlib import Path

import torch

from mdsc.config.schema import TrainConfig
from mdsc.errors import UserError
from mdsc.hub.repository import check_name
from mdsc.model.attention import missing, require, unfit
from mdsc.publish.card_file import check_license
from mdsc.training.batch_shares import micro_batch_size
from mdsc.training.compiled_blocks import require_compiler
from mdsc.training.head_checks import check_head


def check(config: TrainConfig, num_processes: int) -> None:
    """Raise UserError for the first option that is out of its range, or does not fit another."""
    check_head(config, num_processes)
    data, model, train, validation = config.data, config.model, config.train, config.validation
    at_least_one = {
        "data.num-genes": data.num_genes,
        "data.num-lanes": data.num_lanes,
        "data.window": data.window,
        "model.num-latents": model.num_latents,
        "model.hidden-size": model.hidden_size,
        "model.num-heads": model.num_heads,
        "model.state-size": model.state_size,
        "train.max-steps": train.max_steps,
        "train.global-batch-size": train.global_batch_size,
        "train.log-every": train.log_every,
        "train.validate-every": train.validate_every,
        "train.save-every": train.save_every,
        "train.keep-last": train.keep_last,
        "validation.num-cells": validation.num_cells,
    }
    for name, value in at_least_one.items():
        _require(value >= 1, name, value, "1 or more")
    at_least_zero = {
        "data.workers": data.workers,
        "data.prefetch": data.prefetch,
        "model.num-layers": model.num_layers,
        "model.factor-size": model.factor_size,
        "model.condition-rank": model.condition_rank,
        "train.weight-decay": train.weight_decay,
        "train.gene-weight-decay": train.gene_weight_decay,
        "train.warmup-steps": train.warmup_steps,
        "train.pathway-steps": train.pathway_steps,
        "objective.ordinal-weight": config.objective.ordinal_weight,
        "tracking.spike-threshold": config.tracking.spike_threshold,
    }
    for name, value in at_least_zero.items():
        _require(value >= 0, name, value, "0 or more")
    above_zero = {
        "model.mlp-ratio": model.mlp_ratio,
        "train.learning-rate": train.learning_rate,
        "train.pathway-learning-rate": train.pathway_learning_rate,
        "train.clip-norm": train.clip_norm,
    }
    for name, value in above_zero.items():
        _require(value > 0, name, value, "more than 0")
    for name, value in {"train.beta2": train.beta2, "train.ema-decay": train.ema_decay}.items():
        _require(0 <= value < 1, name, value, "0 or more, and less than 1")
    shares = {"data.uniform-share": data.uniform_share, "train.final-lr-fraction": train.final_lr_fraction}
    for name, value in shares.items():
        _require(0 <= value <= 1, name, value, "between 0 and 1")
    below_one = {
        "data.validation-fraction": data.validation_fraction,
        "model.dropout": model.dropout,
        "model.state-dropout": model.state_dropout,
        "train.condition-dropout": train.condition_dropout,
        "train.column-dropout": train.column_dropout,
        "train.level-dropout": train.level_dropout,
    }
    for name, value in below_one.items():
        _require(0 <= value < 1, name, value, "0 or more, and less than 1")
    for ratio in validation.mask_ratios:
        _require(0 < ratio <= 1, "validation.mask-ratios", ratio, "more than 0, and 1 at most")
    _require(len(validation.mask_ratios) > 0, "validation.mask-ratios", "empty", "one ratio or more")
    if model.hidden_size % model.num_heads:
        raise UserError(
            f"--model.hidden-size {model.hidden_size} is no multiple of --model.num-heads {model.num_heads}: "
            "each head takes an equal part of the width."
        )
    if model.num_layers:
        reason = missing(model.attention) or unfit(
            model.attention,
            "cuda" if torch.cuda.is_available() else "cpu",
            is_half=train.precision != "fp32",
            has_pads=data.gene_draw == "expressed" and model.backbone == "dit",
            needs_grad=True,
        )
        require(model.attention, reason, flag="--model.attention")
    if not config.output_dir:
        raise UserError("--output-dir is empty: give a folder for the run.")
    if Path(config.output_dir).resolve() == Path(data.dir).resolve():
        raise UserError(f"--output-dir {config.output_dir} is the folder of shards (--data.dir): give the run its own.")
    if Path(config.output_dir).is_file():
        raise UserError(f"--output-dir {config.output_dir} is a file; give a folder for the run.")
    micro_batch_size(train, num_processes)
    if train.compile:
        require_compiler("cuda" if torch.cuda.is_available() else "cpu")
    if config.hub.repo is not None:
        check_name(config.hub.repo, "--hub.repo")
    if config.hub.every is not None:
        _require(config.hub.every >= 1, "hub.every", config.hub.every, "1 or more")
    check_license(config.hub.license, "--hub.license")


def _require(is_good: bool, name: str, value: float | int | str, wanted: str) -> None:
    if not is_good:
        raise UserError(f"--{name} is {value}; give {wanted}.")
