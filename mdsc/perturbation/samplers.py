"""Latents from noise, by diffusers' schedulers: what steps to take along a noise path, given a denoiser's x_0.

The steps are the schedulers' arithmetic; where they stand is ours. A scheduler is made for just the levels that are
walked (as in respacing, Nichol & Dhariwal 2021, section 4), so that none of its ways of choosing timesteps is used: the
default one begins below the noise that it is given, and DDIM's goes to other levels than the next timestep's unless the
number of steps divides 1,000. Nothing is clipped or thresholded: latents are no images, and go beyond 1.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mdsc.errors import UserError
from mdsc.perturbation.noise_paths import NUM_LEVELS, NoisePath, noise_path

SAMPLERS = ("ddpm", "ddim", "dpm++", "unipc", "euler_edm", "heun_edm", "flow_euler")
DEFAULT_SAMPLER, DEFAULT_STEPS = "unipc", 20
"""Chosen by `benchmarks/gaussian_samplers.py`, with an exact denoiser; from one that learnt epsilon ddpm draws best."""
LEAST_RATIO, GREATEST_RATIO = 0.004, 160.0
"""Of sigma/alpha, in sampling: EDM's range of .002 to 80, for data of sd 1 in place of .5."""
_RHO = 7
"""Of EDM's steps (Karras et al. 2022, eq. 5): the higher, the more of them at low noise."""

Denoise = Callable[[Tensor, float, float], Tensor]
"""x_t (batch, k), alpha, sigma -> x_0 (batch, k)."""


@torch.no_grad()
def draw(
    denoise: Denoise,
    noise: Float[Tensor, "batch k"],
    *,
    path: NoisePath | str,
    sampler: str = DEFAULT_SAMPLER,
    num_steps: int = DEFAULT_STEPS,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch k"]:
    """x_0 of each row, from unit normal noise.

    ddpm (Ho et al. 2020, algorithm 2, with the posterior's variance), ddim (Song et al. 2021, arXiv 2010.02502, eq. 12
    with eta 0), dpm++ (second-order multistep, Lu et al. 2022, arXiv 2211.01095, algorithm 2), unipc (Zhao et al. 2023,
    arXiv 2302.04867, order 2 with corrector), euler_edm and heun_edm (Karras et al. 2022, algorithm 1 without churn),
    flow_euler (Lipman et al. 2023, eq. 23). All but ddpm are deterministic given the noise, and so keep to the end what
    the denoiser gets wrong at the start; ddpm forgets it. That matters for a denoiser that learnt epsilon, whose errors
    of x_0 are largest there.

    Args:
        denoise: E[x_0 | x_t], at alpha and sigma of the sampler's own scale: any denoiser that reads x_t through
            `mdsc.perturbation.targets.network_input`, whatever path it was trained along.
        path: whose noise levels to walk.
        generator: of ddpm's noise.

    Raises ValueError where a value comes out that is not finite.
    """
    path = noise_path(path) if isinstance(path, str) else path
    _check(sampler, num_steps)
    ratios = noise_ratios(sampler, num_steps, path)
    if sampler == "flow_euler":
        x = _flow_euler(denoise, noise, ratios)
    elif sampler in ("euler_edm", "heun_edm"):
        x = (_euler_edm if sampler == "euler_edm" else _heun_edm)(denoise, noise, ratios)
    else:
        x = variance_preserving(denoise, noise, ratios, sampler, generator)
    if not (finite := x.isfinite().all(dim=1)).all():
        raise ValueError(f"{sampler} in {num_steps} steps gave values that are not finite in {(~finite).sum()} rows")
    return x


def num_evaluations(sampler: str, num_steps: int) -> int:
    """Calls of the denoiser; Heun's method makes two a step, but for the last."""
    _check(sampler, num_steps)
    return 2 * num_steps - 1 if sampler == "heun_edm" else num_steps


def noise_ratios(sampler: str, num_steps: int, path: NoisePath) -> Float[np.ndarray, " steps"]:
    """sigma/alpha before each step, falling; after the last it is 0.

    ddpm and ddim go by the path's own time, in equal steps from its end; levels beyond GREATEST_RATIO, of which cosine
    and flow have a few, become that one: there x_0 from epsilon would be off by thousands. The others are free to
    choose within the path's range, as far as that is within LEAST_RATIO and GREATEST_RATIO: euler_edm and heun_edm take
    EDM's steps, dpm++, unipc and flow_euler equal steps of sigma / (alpha + sigma), flow's time. EDM's would cost the
    multistep solvers twice the steps, as few of them are where sigma is near alpha (`benchmarks/gaussian_samplers.py`).
    """
    of_path = path.ratios(NUM_LEVELS).numpy()
    if sampler in ("ddpm", "ddim"):
        if num_steps > NUM_LEVELS:
            raise ValueError(f"{num_steps} steps of {sampler}: a path has {NUM_LEVELS} levels")
        places = np.round(NUM_LEVELS - np.arange(num_steps) * NUM_LEVELS / num_steps).astype(int) - 1
        return np.minimum(of_path[places], GREATEST_RATIO)
    least, greatest = max(of_path[0], LEAST_RATIO), min(of_path[-1], GREATEST_RATIO)
    if sampler in ("dpm++", "unipc", "flow_euler"):
        latest, earliest = greatest / (1 + greatest), least / (1 + least)
        time = np.linspace(latest, max(latest / num_steps, earliest), num_steps)
        return time / (1 - time)
    return np.linspace(greatest ** (1 / _RHO), least ** (1 / _RHO), num_steps) ** _RHO


def variance_preserving(
    denoise: Denoise, x: Tensor, ratios: np.ndarray, sampler: str, generator: torch.Generator | None = None
) -> Tensor:
    """ddpm, ddim, dpm++ or unipc from unit normal x along any falling ratios."""
    diffusers = _diffusers()
    options = {"num_train_timesteps": len(ratios), "trained_betas": betas_of(ratios), "prediction_type": "sample"}
    options |= {"timestep_spacing": "trailing", "thresholding": False}
    if sampler in ("ddpm", "ddim"):
        scheduler_type = diffusers.DDPMScheduler if sampler == "ddpm" else diffusers.DDIMScheduler
        scheduler = scheduler_type(**options, clip_sample=False)
    elif sampler == "dpm++":
        scheduler = diffusers.DPMSolverMultistepScheduler(**options, algorithm_type="dpmsolver++", solver_order=2)
    else:
        scheduler = diffusers.UniPCMultistepScheduler(**options, solver_order=2)
    scheduler.set_timesteps(len(ratios))
    noise = {"generator": generator} if sampler == "ddpm" else {}
    for timestep in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[timestep]
        x0 = denoise(x, alpha_bar.sqrt().item(), (1 - alpha_bar).sqrt().item())
        x = scheduler.step(x0, timestep, x, **noise).prev_sample
    return x


def _euler_edm(denoise: Denoise, noise: Tensor, ratios: np.ndarray) -> Tensor:
    scheduler = _diffusers().EDMEulerScheduler(
        sigma_min=float(ratios[-1]), sigma_max=float(ratios[0]), sigma_data=1.0, rho=_RHO
    )
    scheduler.set_timesteps(len(ratios))
    x = noise * np.hypot(1, ratios[0])
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x0 = denoise(x, 1.0, sigma.item())
        scheduler.scale_model_input(x, timestep)  # the input's scale is the denoiser's affair; this counts the step
        x = scheduler.step(x0, timestep, x, pred_original_sample=x0).prev_sample
    return x


def _heun_edm(denoise: Denoise, noise: Tensor, ratios: np.ndarray) -> Tensor:
    scheduler = _diffusers().HeunDiscreteScheduler(
        num_train_timesteps=len(ratios), trained_betas=betas_of(ratios), prediction_type="sample"
    )
    scheduler.set_timesteps(len(ratios))
    scheduler.set_begin_index(0)
    x = noise * np.hypot(1, ratios[0])
    # A level stands twice where both evaluations of a step are made at it.
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(denoise(x, 1.0, sigma.item()), timestep, x).prev_sample
    return x


def _flow_euler(denoise: Denoise, noise: Tensor, ratios: np.ndarray) -> Tensor:
    scheduler = _diffusers().FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=list(ratios / (1 + ratios)))
    x = noise * np.hypot(1, ratios[0]) / (1 + ratios[0])
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x0 = denoise(x, 1 - sigma.item(), sigma.item())
        x = scheduler.step((x - x0) / sigma.to(x.device), timestep, x).prev_sample
    return x


def betas_of(ratios: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Betas of a variance-preserving path whose levels have these (falling) ratios, from clean to noise.

    alpha_bar = 1 / (1 + ratio^2) (Ho et al. 2020, eq. 4): every path, over sqrt(alpha^2 + sigma^2), preserves variance.
    """
    alpha_bar = 1 / (1 + np.square(ratios[::-1]))
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def _check(sampler: str, num_steps: int) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}: there are {', '.join(SAMPLERS)}")
    if num_steps < 1:
        raise ValueError(f"{num_steps} steps of {sampler}: at least 1")


def _diffusers():
    try:
        import diffusers
    except ImportError as error:
        raise UserError("samplers of the Gaussian head need diffusers: pip install 'mdsc[perturbation]'") from error
    return diffusers
