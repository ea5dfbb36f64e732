"""Exponential moving average of the weights: what is validated, saved and sampled from."""

import copy

import torch
from torch import nn


class Ema:
    """A copy of the model whose float32 weights follow the trained ones.

    The n-th update (from 0) moves by 1 - d with d = min(decay, (1 + n) / (10 + n)), so that the start is forgotten
    soon and short runs are averaged over a share of their length.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.float()
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of `model`; buffers are taken as they are."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [parameter.data.float() for parameter in model.parameters()]
        torch._foreach_lerp_([parameter.data for parameter in self.model.parameters()], weights, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.num_updates += 1
