"""AdamW: which weights decay, the learning rate as a function of the step, and steps that bad gradients cannot take."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mdsc.config.schema import OptimConfig

OUTPUT_BIAS_RATE = 0.05
"""Learning rate of the output bias over that of the rest: it starts at the training cells' frequencies, and at the full
rate it learns the chance of every rare token by heart."""


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of the model, fused. The learning rate is set before each step."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=True,
    )


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Four groups with their weight decay and `rate`, the learning rate over that of the run.

    The matrices of linear layers decay; tables, gains and biases do not, because a row that is seldom drawn gets a
    gradient seldom but would decay at every step. The gene vectors of the pathway have a decay of their own.
    """
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    matrices, gene_vectors, output_bias, rest = [], [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith(("cell_state.gene_in.weight", "cell_state.gene_out.weight")):
            gene_vectors.append(parameter)
        elif name.endswith("output_bias.weight"):
            output_bias.append(parameter)
        else:
            (matrices if id(parameter) in linear else rest).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate": 1.0},
        {"params": gene_vectors, "weight_decay": config.gene_weight_decay, "rate": 1.0},
        {"params": output_bias, "weight_decay": 0.0, "rate": OUTPUT_BIAS_RATE},
        {"params": rest, "weight_decay": 0.0, "rate": 1.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The run's learning rate, times that of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ..., max_steps - 1.

    A linear warm-up over `warmup_steps`, then a cosine that reaches `final_lr_fraction` of the peak at max_steps. Where
    the first `pathway_steps` train the cell-state pathway alone, these are warmed up to `pathway_learning_rate` and
    held there; the warm-up and the cosine begin anew when the blocks of the network join in.
    """
    has_second_phase = 0 < config.pathway_steps < config.max_steps
    start = config.pathway_steps if has_second_phase else 0
    if step < start:
        return config.pathway_learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
    since = step - start
    if since < config.warmup_steps:
        return config.learning_rate * (since + 1) / config.warmup_steps
    progress = (since - config.warmup_steps) / max(config.max_steps - start - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float) -> Float[Tensor, ""]:
    """Scale the gradients to this norm, if theirs is larger. Gives theirs: that of whole gradients, where sharded.

    It is the same on all processes, also where a gradient is not finite on one of them.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def step_if(is_finite: Bool[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """Take an optimiser step, or leave weights and moments as they are where `is_finite` is false.

    The decision is taken on the device: the fused kernels read `found_inf`, which is what torch's GradScaler sets, so
    that the host need not wait for the gradients.
    """
    optimizer.found_inf = (~is_finite).float()
    optimizer.step()
