"""AdamW: which weights decay, the learning rate as a function of the step, and steps that bad gradients cannot take."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mdsc.config.schema import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of the model, fused. The learning rate is set before each step."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=True,
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The matrices of linear layers decay; gene and token tables, gains and biases do not.

    A table's row that is seldom drawn gets a gradient seldom, but would decay at every step.
    """
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in model.parameters():
        groups[id(parameter) not in decayed - tables]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ..., max_steps - 1.

    A linear warm-up over `warmup_steps`, then a cosine that reaches `final_lr_fraction` of the peak at max_steps. Where
    the first `pathway_steps` train the cell-state pathway alone, these are warmed up and then held at the peak; the
    warm-up and the cosine begin anew when the blocks of the network join in.
    """
    has_second_phase = 0 < config.pathway_steps < config.max_steps
    start = config.pathway_steps if has_second_phase else 0
    if step < start:
        return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
    since = step - start
    if since < config.warmup_steps:
        return config.learning_rate * (since + 1) / config.warmup_steps
    progress = (since - config.warmup_steps) / max(config.max_steps - start - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def step_if(is_finite: Bool[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """Take an optimiser step, or leave weights and moments as they are where `is_finite` is false.

    The decision is taken on the device: the fused kernels read `found_inf`, which is what torch's GradScaler sets, so
    that the host need not wait for the gradients.
    """
    optimizer.found_inf = (~is_finite).float()
    optimizer.step()
