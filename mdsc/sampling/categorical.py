"""Categorical draws in float64.

Float32 draws never reach a tail beyond 2^-24, which lowers the effective temperature (Zheng et al., arXiv 2409.02908);
the high counts of a cell live there.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


def draw(logits: Float[Tensor, "n V"], u: Float64[Tensor, " n"], temperature: float = 1.0) -> Int64[Tensor, " n"]:
    """The token at which the cumulative distribution of softmax(logits / temperature) passes u in (0, 1)."""
    assert u.dtype == torch.float64
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    # The sum differs from 1 by rounding. u times it stays below it, so that some token always passes; and one of no
    # probability never does, because its step has no height.
    return (cumulative <= u[:, None] * cumulative[:, -1:]).sum(dim=-1)
