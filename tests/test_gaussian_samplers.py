"""Samplers of the Gaussian diffusion head, with exact denoisers, so that what is left is the samplers' error."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mdsc.perturbation.denoisers import init_weights, make_denoiser
from mdsc.perturbation.noise_paths import PATHS, noise_path
from mdsc.perturbation.samplers import (
    DEFAULT_SAMPLER,
    DEFAULT_STEPS,
    SAMPLERS,
    betas_of,
    draw,
    noise_ratios,
    num_evaluations,
)
from mdsc.perturbation.targets import network_input, noised, pointwise, regression_target, x0_of

pytest.importorskip("diffusers")

ENOUGH = {"ddpm": 250, "ddim": 100, "dpm++": 25, "unipc": 20, "euler_edm": 150, "heun_edm": 25, "flow_euler": 100}
"""Steps after which the error is within a few per cent."""


class Gaussian:
    """N(mean, covariance), and E[x_0 | x_t] in closed form."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean, self.covariance = mean, covariance
        self.evaluations: list[tuple[float, float]] = []

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        self.evaluations.append((alpha, sigma))
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean))
        return self.mean + alpha * (x - alpha * self.mean) @ torch.linalg.solve(total, self.covariance)


def correlated() -> Gaussian:
    return Gaussian(torch.tensor([0.5, -0.3, 0.0]), torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.4]]))


def whitened(num_cells: int = 4000, k: int = 3) -> Tensor:
    """Noise whose mean is 0 and whose covariance is the identity: linear maps of it have no error of chance."""
    noise = torch.randn(num_cells, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise - noise.mean(dim=0)
    return (noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T).float()


def drawn(law, noise: Tensor, sampler: str, num_steps: int, path: str = "flow") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return draw(law, noise, sampler=sampler, num_steps=num_steps, path=path, generator=generator)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_gaussian_keeps_its_mean_and_covariance(sampler: str, path: str):
    law = correlated()
    x = drawn(law, whitened(), sampler, ENOUGH[sampler], path)
    assert x.dtype == torch.float32
    assert (x.mean(dim=0) - law.mean).abs().max() < 0.05
    assert (torch.cov(x.T) - law.covariance).abs().max() < 0.06


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_have_less_error(sampler: str):
    law, noise = correlated(), whitened()
    few, more, most = (
        (torch.cov(drawn(law, noise, sampler, steps).T) - law.covariance).abs().max() for steps in (6, 24, 96)
    )
    assert few > more > most


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mixture_keeps_its_weights(sampler: str):
    weights, means, sd = torch.tensor([0.7, 0.3]), torch.tensor([[0.6, 0.6], [-1.4, -1.4]]), 0.3

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        total = (alpha * sd) ** 2 + sigma**2
        from_mean = x[:, None] - alpha * means  # (batch, components, k)
        share = (weights.log() - from_mean.square().sum(dim=2) / (2 * total)).softmax(dim=1)
        return (share[:, :, None] * (means + alpha * sd**2 / total * from_mean)).sum(dim=1)

    x = drawn(denoise, torch.randn(4000, 2, generator=torch.Generator().manual_seed(2)), sampler, ENOUGH[sampler])
    is_first = x.sum(dim=1) > -0.8
    assert is_first.float().mean().item() == pytest.approx(0.7, abs=0.03)
    for component, members in enumerate((is_first, ~is_first)):
        assert (x[members].mean(dim=0) - means[component]).abs().max() < 0.05
        assert (x[members].std(dim=0) - sd).abs().max() < 0.05


@pytest.mark.parametrize(
    ("target", "path"), [("flow", "flow"), ("v", "cosine"), ("edm", "edm"), ("epsilon", "linear"), ("x0", "flow")]
)
def test_a_denoiser_that_is_learnt_draws_its_data(target: str, path: str):
    """All parts together: two Gaussians that a condition tells apart, learnt along a path and then drawn."""
    torch.manual_seed(0)
    model = make_denoiser("adaln", 2, 1, width=48, num_layers=2)
    model.apply(init_weights)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=300)
    for _ in range(300):
        condition = torch.randint(2, (256, 1)).float()
        x0, noise = (2 * condition - 1) + 0.5 * torch.randn(256, 2), torch.randn(256, 2)
        alpha, sigma = noise_path(path).levels(torch.rand(256))
        output = model(*network_input(noised(x0, noise, alpha, sigma), alpha, sigma), condition)
        loss = pointwise(output, regression_target(x0, noise, alpha, sigma, target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        levels = x.new_full((len(x),), alpha), x.new_full((len(x),), sigma)
        return x0_of(model(*network_input(x, *levels), torch.ones(len(x), 1)), x, *levels, target)

    # Epsilon's errors of x_0 are large towards noise, where a walk begins; of all samplers ddpm alone forgets them.
    how = {"sampler": "ddpm", "num_steps": 250} if target == "epsilon" else {}
    x = draw(denoise, torch.randn(2000, 2), path=path, **how)
    assert (x.mean(dim=0) - 1).abs().max() < 0.15
    assert (x.std(dim=0) - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_data_of_scale_5_survives(sampler: str):
    """With diffusers' default, x_0 is clipped to -1, 1."""
    law = Gaussian(torch.tensor([5.0, -4.0, 0.0]), 25 * torch.eye(3))
    x = drawn(law, whitened(), sampler, 2 * ENOUGH[sampler], "linear")
    assert (x.mean(dim=0) - law.mean).abs().max() < 0.5
    assert (x.std(dim=0) - 5).abs().max() < 0.5
    assert x.abs().max() > 12


def test_the_default_is_within_noise_of_a_thousand_steps_of_ddpm():
    law, noise = correlated(), whitened()
    assert num_evaluations(DEFAULT_SAMPLER, DEFAULT_STEPS) <= 25
    by_default = draw(law, noise, path="flow")
    by_ddpm = drawn(law, noise, "ddpm", 1000)
    errors = [(torch.cov(x.T) - law.covariance).abs().max().item() for x in (by_default, by_ddpm)]
    assert errors[0] <= max(errors[1], 0.01)


def test_a_thousand_steps_of_ddpm_are_diffusers_own():
    from diffusers import DDPMScheduler

    law = correlated()
    noise = whitened(50)
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False)
    generator, x = torch.Generator().manual_seed(1), noise
    for timestep in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[timestep]
        x0 = law(x, alpha_bar.sqrt().item(), (1 - alpha_bar).sqrt().item())
        x = scheduler.step(x0, timestep, x, generator=generator).prev_sample
    assert torch.allclose(drawn(law, noise, "ddpm", 1000, "linear"), x, atol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 30])
def test_the_denoiser_is_asked_at_the_levels_that_are_walked(sampler: str, num_steps: int):
    """7 and 30 do not divide 1,000, where diffusers' DDIM would step to other levels than it stands at next."""
    law = correlated()
    drawn(law, whitened(10), sampler, num_steps)
    assert len(law.evaluations) == num_evaluations(sampler, num_steps)
    ratios = noise_ratios(sampler, num_steps, noise_path("flow"))
    asked = [sigma / alpha for alpha, sigma in law.evaluations]
    if sampler == "heun_edm":
        asked = [asked[0], *asked[1::2]]
    assert np.allclose(asked, ratios, rtol=0.005)
    scale = {"heun_edm": lambda alpha, _: alpha, "euler_edm": lambda alpha, _: alpha, "flow_euler": float.__add__}
    size = scale.get(sampler, lambda alpha, sigma: alpha**2 + sigma**2)
    assert np.allclose([size(*level) for level in law.evaluations], 1, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_levels_fall_within_the_path(sampler: str, path: str):
    ratios, of_path = noise_ratios(sampler, 20, noise_path(path)), noise_path(path).ratios()
    assert (np.diff(ratios) < 0).all()
    assert ratios[0] <= of_path[-1] * 1.0001
    assert ratios[-1] >= of_path[0] * 0.9999
    assert ratios[0] > 20, "noise is where it starts"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("path", ["cosine", "flow"])
def test_errors_of_epsilon_do_not_explode_at_the_end_of_a_path(sampler: str, path: str):
    """Cosine ends at sigma = 20,000 alpha, so that an error of .01 in the noise would be one of 200 in x_0."""
    law = correlated()

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        return law(x, alpha, sigma) + 0.01 * sigma / alpha

    x = drawn(denoise, whitened(), sampler, 50, path)
    assert (x.mean(dim=0) - law.mean).abs().max() < 0.5


def test_betas_give_the_ratios_back():
    ratios = noise_path("linear").ratios().numpy()
    assert np.allclose(betas_of(ratios[::-1]), np.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_ddpm_draws_more_noise(sampler: str):
    one, same, other = (
        draw(
            correlated(),
            whitened(20),
            sampler=sampler,
            num_steps=5,
            path="cosine",
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (sampler != "ddpm")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_not_finite_is_said(sampler: str):
    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        return x.masked_fill(torch.arange(len(x))[:, None] == 1, torch.nan)

    with pytest.raises(ValueError, match="not finite in 1 rows"):
        drawn(denoise, whitened(4), sampler, 5)


def test_options_that_there_are_not():
    with pytest.raises(ValueError, match="no sampler 'ancestral': there are ddpm"):
        drawn(correlated(), torch.zeros(2, 3), "ancestral", 5)
    with pytest.raises(ValueError, match="0 steps of ddim: at least 1"):
        num_evaluations("ddim", 0)
    with pytest.raises(ValueError, match="2000 steps of ddpm: a path has 1000 levels"):
        drawn(correlated(), torch.zeros(2, 3), "ddpm", 2000)
