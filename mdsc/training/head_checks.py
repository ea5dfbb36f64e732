"""Options of the two heads: those that the one reads and the other does not are refused, not left unread."""

from dataclasses import fields
from typing import Any

from mdsc.config.schema import GaussianConfig, TrainConfig
from mdsc.errors import UserError
from mdsc.training.batch_shares import micro_batch_size

MASKED_ALONE = {
    "model": None,
    "tokenizer": None,
    "objective": None,
    "data": (
        *("num_genes", "gene_draw", "uniform_share", "num_lanes", "window", "workers", "on_corrupt", "prefetch"),
        "condition_columns",
    ),
    "train": (
        *("gene_weight_decay", "column_dropout", "level_dropout", "pathway_learning_rate", "pathway_steps"),
        *("gradient_checkpointing", "compile"),
    ),
    "validation": ("mask_ratios",),
}
"""Options that the Gaussian head does not read; None: all of the group."""


def check_head(config: TrainConfig, num_processes: int) -> None:
    """UserError for an option of the other head, and for numbers that the Gaussian head cannot start with."""
    if config.head == "masked":
        if changed := _changed(config.gaussian, GaussianConfig()):
            name, value = changed[0]
            raise UserError(f"--gaussian.{_flag(name)} {value} is for --head gaussian, and this is the masked model.")
        return
    defaults = TrainConfig()
    for group, names in MASKED_ALONE.items():
        for name, value in _changed(getattr(config, group), getattr(defaults, group)):
            if names is None or name in names:
                raise UserError(
                    f"--{group}.{_flag(name)} {value} is for the masked model, and this is --head gaussian: start from "
                    "--config configs/adamson_pca.yaml."
                )
    _check_numbers(config, num_processes)


def _check_numbers(config: TrainConfig, num_processes: int) -> None:
    options, train = config.gaussian, config.train
    if train.batch_size == "auto" or train.precision == "bf16":
        name = "batch-size auto" if train.batch_size == "auto" else "precision bf16"
        raise UserError(f"--train.{name} is for the masked model: a batch of latents is small, and stays in float32.")
    at_least_one = {
        "width": options.width,
        "num-layers": options.num_layers,
        "num-steps": options.num_steps,
        "pca-size": 1 if options.pca_size is None else options.pca_size,
    }
    for name, value in at_least_one.items():
        _require(value >= 1, name, value, "1 or more")
    _require(options.set_size >= 2, "set-size", options.set_size, "2 or more")
    _require(options.decoder_width >= 0, "decoder-width", options.decoder_width, "0 or more")
    for name, value in {"set-weight": options.set_weight, "decoder-weight": options.decoder_weight}.items():
        _require(value >= 0, name, value, "0 or more")
    for name, value in {"dropout": options.dropout, "vector-dropout": options.vector_dropout}.items():
        _require(0 <= value < 1, name, value, "0 or more, and less than 1")
    for name, value in {"generated-share": options.generated_share, "generated-from": options.generated_from}.items():
        _require(0 <= value <= 1, name, value, "between 0 and 1")
    size = micro_batch_size(train, num_processes)
    if size % options.set_size:
        raise UserError(
            f"--gaussian.set-size {options.set_size} does not divide the {size} cells that a process takes at once "
            f"(--train.global-batch-size {train.global_batch_size}, --train.batch-size {train.batch_size})."
        )
    if options.pca_fit == "per_split" and options.pca_size is None:
        raise UserError("--gaussian.pca-fit per_split is about a PCA, and --gaussian.pca-size none has none.")


def _changed(group: Any, default: Any) -> list[tuple[str, Any]]:
    """Options with another value than the default."""
    named = [(field.name, getattr(group, field.name)) for field in fields(group)]
    return [(name, value) for name, value in named if value != getattr(default, name)]


def _require(is_good: bool, name: str, value: float | int, wanted: str) -> None:
    if not is_good:
        raise UserError(f"--gaussian.{name} is {value}; give {wanted}.")


def _flag(name: str) -> str:
    return name.replace("_", "-")
