"""What the denoiser learns to give, and how x_0 is read from it; at any noise level (alpha, sigma).

With r = sqrt(alpha^2 + sigma^2), a = alpha / r, s = sigma / r:

epsilon  the noise (Ho et al. 2020, eq. 14). At the noisy end its error comes back in x_0 sigma/alpha times as large:
         157 times at the last step of the linear path.
v        a noise - s x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D)
edm      (x_0 - c_skip x) / c_out for data of sd 1 (Karras et al. 2022, eq. 7 and table 1), which is -v: the two differ
         by the path they are trained along
flow     noise - x_0, the velocity of the straight path (Lipman et al. 2023, eq. 23, with time reversed)
x0       x_0 itself

A network that gives 0 means x_0 = a x_t / r by v and edm: the best that can be said of N(0, 1) latents.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mdsc.perturbation.noise_paths import NUM_LEVELS, noise_path

TARGETS = ("flow", "v", "edm", "epsilon", "x0")
_ALPHA_FLOOR = 1e-6
"""Where nothing of x_0 is left, noise says nothing of it; x_0 is far off then, but finite."""
_TIME_LIMIT = 2.5
"""Of the denoiser's time input: ratios from e^-10 to e^10."""


def noised(
    x0: Float[Tensor, "batch k"],
    noise: Float[Tensor, "batch k"],
    alpha: Float[Tensor, " batch"],
    sigma: Float[Tensor, " batch"],
) -> Float[Tensor, "batch k"]:
    """x_t = alpha x_0 + sigma noise."""
    return alpha[:, None] * x0 + sigma[:, None] * noise


def network_input(
    xt: Float[Tensor, "batch k"], alpha: Float[Tensor, " batch"], sigma: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch k"], Float[Tensor, " batch"]]:
    """(x_t / r, time): of variance 1 for latents of variance 1, and log(sigma / alpha) / 4 (EDM's c_in and c_noise)."""
    log_ratio = sigma.clamp(min=1e-30).log() - alpha.clamp(min=1e-30).log()
    return xt / torch.hypot(alpha, sigma)[:, None], (log_ratio / 4).clamp(-_TIME_LIMIT, _TIME_LIMIT)


def x0_of(
    output: Float[Tensor, "batch k"],
    xt: Float[Tensor, "batch k"],
    alpha: Float[Tensor, " batch"],
    sigma: Float[Tensor, " batch"],
    target: str,
) -> Float[Tensor, "batch k"]:
    """The denoiser's raw output as x_0."""
    alpha, sigma = alpha[:, None], sigma[:, None]
    match _known(target):
        case "epsilon":
            return (xt - sigma * output) / alpha.clamp(min=_ALPHA_FLOOR)
        case "v" | "edm":
            sign = 1 if target == "v" else -1
            return (alpha * xt / torch.hypot(alpha, sigma) - sign * sigma * output) / torch.hypot(alpha, sigma)
        case "flow":
            return (xt - sigma * output) / (alpha + sigma)
    return output


def regression_target(
    x0: Float[Tensor, "batch k"],
    noise: Float[Tensor, "batch k"],
    alpha: Float[Tensor, " batch"],
    sigma: Float[Tensor, " batch"],
    target: str,
) -> Float[Tensor, "batch k"]:
    """What the raw output should be."""
    alpha, sigma = alpha[:, None], sigma[:, None]
    match _known(target):
        case "epsilon":
            return noise
        case "v" | "edm":
            v = (alpha * noise - sigma * x0) / torch.hypot(alpha, sigma)
            return v if target == "v" else -v
        case "flow":
            return noise - x0
    return x0


def pointwise(output: Float[Tensor, "batch k"], wanted: Float[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
    """Squared error of each cell, mean over the k latents."""
    return (output - wanted).square().mean(dim=1)


def epsilon_floor(variance: float | int | Float[Tensor, " k"], path: str) -> float:
    """Mean squared error of the noise that the best denoiser is left with, if it knows no more than the latents' law.

    It is E[alpha^2 s^2 / (alpha^2 s^2 + sigma^2)] over the path's times, for independent normal latents of these
    variances s^2; mean over them. So a small error of the noise need not mean that conditions were learnt.
    """
    squared_ratio = noise_path(path).ratios(NUM_LEVELS).square()[:, None]
    variance = torch.as_tensor(variance, dtype=torch.float64).reshape(1, -1)
    return (variance / (variance + squared_ratio)).mean().item()


def _known(target: str) -> str:
    if target not in TARGETS:
        raise ValueError(f"no target {target!r}: there are {', '.join(TARGETS)}")
    return target
