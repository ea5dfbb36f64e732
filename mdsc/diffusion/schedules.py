"""Masking schedules: alpha(t) is the chance that a position is still visible at time t, from alpha(0)=1 to alpha(1)=0.

Nothing is cut off near t=0 or t=1 (implementations that keep alpha within [eps, 1-eps] bias the bound by a share eps).
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

SCHEDULES = ("linear", "cosine")


def alpha(t: Float64[Tensor, "..."], schedule: str) -> Float64[Tensor, "..."]:
    """linear: 1 - t (MDLM's log-linear noise, arXiv 2406.07524); cosine: 1 - cos(pi/2 (1 - t)) (MD4, 2406.04329)."""
    return 1 - hidden_share(t, schedule)


def alpha_prime(t: Float64[Tensor, "..."], schedule: str) -> Float64[Tensor, "..."]:
    """Derivative of alpha in t; never positive."""
    if schedule == "linear":
        return -torch.ones_like(t)
    assert schedule == "cosine", schedule
    return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


def hidden_share(t: Float64[Tensor, "..."], schedule: str) -> Float64[Tensor, "..."]:
    """1 - alpha(t), without the cancellation that would make it 0 at a small t, where the loss divides by it."""
    if schedule == "linear":
        return t
    assert schedule == "cosine", schedule
    return torch.sin(math.pi / 2 * t)
