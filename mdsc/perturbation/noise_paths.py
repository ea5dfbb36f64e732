"""Noise paths: x_t = alpha x_0 + sigma * noise, and how often training meets each level (alpha, sigma).

A path is known by its ratios sigma/alpha: x_t over sqrt(alpha^2 + sigma^2) depends on nothing else. So one denoiser
serves all paths (Karras et al. 2022, arXiv 2206.00364, section 2), and any sampler can walk along any of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

PATHS = ("linear", "cosine", "flow", "edm")
NUM_LEVELS = 1000
"""Of the paths with discrete time; DDPM's T."""

LOG_RATIO_MEAN, LOG_RATIO_SD = -0.5, 1.2
"""Of log sigma in EDM training (Karras 2022, table 1: -1.2 and 1.2 for data of sd 0.5; latents have sd 1)."""
_MIDDLE = 1e-6
"""Time is kept this far from 0 and 1, where ratios are 0 or infinite."""


@dataclass(frozen=True)
class NoisePath:
    """Levels by time u in (0, 1), from clean to noise. Training draws u uniformly."""

    name: str
    _levels: Callable[[Float64[Tensor, " batch"]], tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]]

    def levels(self, u: Float[Tensor, " batch"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """(alpha, sigma) of each cell, of u's type and on its device; found in float64."""
        alpha, sigma = self._levels(u.double().clamp(_MIDDLE, 1 - _MIDDLE))
        return alpha.to(u), sigma.to(u)

    def ratios(self, num_levels: int = NUM_LEVELS) -> Float64[Tensor, " levels"]:
        """sigma/alpha in the middle of each of `num_levels` equal parts of time, ascending.

        Those of the discrete paths, with NUM_LEVELS, are all that they have.
        """
        alpha, sigma = self._levels((torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels)
        return sigma / alpha


def noise_path(name: str) -> NoisePath:
    """The path of this name.

    linear: betas from 1e-4 to .02 in 1,000 steps (Ho et al. 2020, arXiv 2006.11239, section 4). cosine: Nichol &
    Dhariwal 2021 (arXiv 2102.09672, eq. 17, betas at most .999). Both preserve variance: alpha^2 + sigma^2 = 1. flow:
    alpha = 1 - u, sigma = u (Lipman et al. 2023, arXiv 2210.02747, eq. 20 with sigma_min 0 and time reversed). edm:
    alpha = 1, log sigma is normal (Karras et al. 2022, table 1).
    """
    if name in ("linear", "cosine"):
        alpha_bar = linear_alpha_bar() if name == "linear" else cosine_alpha_bar()
        return NoisePath(name, lambda u: _discrete(u, alpha_bar.to(u.device)))
    if name == "flow":
        return NoisePath(name, lambda u: (1 - u, u))
    if name == "edm":
        return NoisePath(
            name, lambda u: (torch.ones_like(u), torch.exp(LOG_RATIO_MEAN + LOG_RATIO_SD * torch.special.ndtri(u)))
        )
    raise ValueError(f"no noise path {name!r}: there are {', '.join(PATHS)}")


def linear_alpha_bar(num_levels: int = NUM_LEVELS) -> Float64[Tensor, " levels"]:
    """Product of 1 - beta up to each step (Ho et al. 2020, eq. 4)."""
    return (1 - torch.linspace(1e-4, 0.02, num_levels, dtype=torch.float64)).cumprod(dim=0)


def cosine_alpha_bar(num_levels: int = NUM_LEVELS) -> Float64[Tensor, " levels"]:
    """As above, where 1 - beta are the ratios of cos^2 at neighbouring times, but at least .001."""
    time = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    share = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (share[1:] / share[:-1]).clamp(min=0.001).cumprod(dim=0)


def _discrete(
    u: Float64[Tensor, " batch"], alpha_bar: Float64[Tensor, " levels"]
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    chosen = alpha_bar[(u * len(alpha_bar)).long()]
    return chosen.sqrt(), (1 - chosen).sqrt()
