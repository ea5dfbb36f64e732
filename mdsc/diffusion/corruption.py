"""Which positions of a cell are hidden, and what weight makes the hidden positions' cross-entropy a bound of its NLL.

Absorbing-state diffusion: a position is visible or hidden, nothing between. How much of a cell is hidden comes from one
uniform u per cell. The u of a global batch are strata, u_b = (u_0 + b/B) mod 1 (MD4, arXiv 2406.04329): each is
uniform, and together they cover (0, 1) evenly, over all ranks and accumulated micro-batches.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.diffusion.schedules import alpha_prime, hidden_share
from mdsc.errors import UserError


@dataclass(frozen=True)
class Corruption:
    """hidden (batch, genes), never a pad; weight (batch,).

    weight * sum(hidden * cross_entropy) / n, for the n real positions of a cell, has as its expectation the diffusion
    bound of the cell's negative log-likelihood, in nats per gene.
    """

    hidden: Bool[Tensor, "batch genes"]
    weight: Float64[Tensor, " batch"]


def corrupt(
    is_pad: Bool[Tensor, "batch genes"],
    cell_index: Int[Tensor, " batch"],
    *,
    global_batch_size: int,
    seed: int,
    step: int,
    form: str = "fixed_k",
    schedule: str = "linear",
) -> Corruption:
    """Hide part of each cell, as a function of (seed, step, cell_index) alone.

    cell_index: position in the global batch, 0 to global_batch_size - 1; it picks the stratum and keys the positions.
    form, schedule: see `hide_at`; the schedule matters to the continuous form only.
    """
    u_0 = keyed_uniform(Stream.STRATUM, seed, step)
    u = strata(u_0, cell_index, global_batch_size)
    scores = keyed_uniform(Stream.HIDE, seed, step, cell_index[:, None], _positions(is_pad))
    return hide_at(u, scores, is_pad, form=form, schedule=schedule)


def strata(u_0: Float64[Tensor, "..."], index: Int[Tensor, "..."], num_strata: int) -> Float64[Tensor, "..."]:
    """(u_0 + index / num_strata) mod 1: uniform for each index, and evenly spaced over all of them."""
    return (u_0 + index / torch.tensor(num_strata, dtype=torch.float64)) % 1


def hide_at(
    u: Float64[Tensor, " batch"],
    scores: Float64[Tensor, "batch genes"],
    is_pad: Bool[Tensor, "batch genes"],
    *,
    form: str,
    schedule: str = "linear",
) -> Corruption:
    """Hide a share of each cell that u in [0, 1) sets, at positions that the independent uniforms `scores` pick.

    fixed_k: exactly k = 1 + floor(n u) of the n real positions, weight n / k. Any-order autoregression with one k drawn
    per cell (LLaDA, arXiv 2502.09992, its likelihood estimator); a constant loss has no variance at all.
    continuous: each position with chance 1 - alpha_t at t = u, weight -alpha'_t / (1 - alpha_t) (MDLM, arXiv
    2406.07524, its continuous-time bound).
    """
    n = (~is_pad).sum(dim=1)
    if form == "fixed_k":
        # The product can round up to n.
        k = torch.minimum(1 + (n * u).floor().long(), n)
        return Corruption(_smallest(scores, k, is_pad), n.double() / k.clamp(min=1))
    assert form == "continuous", form
    share = hidden_share(u, schedule)
    # u_0 = 0 cannot be drawn, but a stratum may round to 0; nothing is hidden there, whatever the weight.
    weight = -alpha_prime(u, schedule) / share.clamp(min=2.0**-53)
    return Corruption((scores < share[:, None]) & ~is_pad, weight)


def hide_fraction(
    is_pad: Bool[Tensor, "batch genes"], ratio: float, *, seed: int, cell_index: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch genes"]:
    """Hide exactly round(ratio * n) of each cell's n real positions (half to even), for validation and scoring."""
    if not 0 <= ratio <= 1:
        raise UserError(f"a mask ratio lies between 0 and 1, but {ratio} was given")
    scores = keyed_uniform(Stream.HIDE, seed, cell_index[:, None], _positions(is_pad))
    k = (ratio * (~is_pad).sum(dim=1).double()).round().long()
    return _smallest(scores, k, is_pad)


def _positions(is_pad: Tensor) -> Tensor:
    return torch.arange(is_pad.shape[1], device=is_pad.device)


def _smallest(scores: Tensor, k: Tensor, is_pad: Tensor) -> Tensor:
    """(batch, genes) bool: the k real positions of each row that have the smallest scores."""
    order = scores.masked_fill(is_pad, torch.inf).argsort(dim=1, stable=True)
    return torch.zeros_like(is_pad).scatter(1, order, _positions(is_pad) < k[:, None])
