"""Noise paths and targets of the Gaussian diffusion head."""

import numpy as np
import pytest
import torch

from mdsc.perturbation.noise_paths import LOG_RATIO_MEAN, LOG_RATIO_SD, NUM_LEVELS, PATHS, noise_path
from mdsc.perturbation.targets import (
    TARGETS,
    epsilon_floor,
    network_input,
    noised,
    pointwise,
    regression_target,
    x0_of,
)

TIMES = (torch.arange(NUM_LEVELS, dtype=torch.float64) + 0.5) / NUM_LEVELS
U = TIMES.float()


@pytest.mark.parametrize(("name", "betas"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_levels_are_those_of_diffusers(name: str, betas: str):
    diffusers = pytest.importorskip("diffusers")
    alpha_bar = diffusers.DDPMScheduler(beta_schedule=betas).alphas_cumprod
    alpha, sigma = noise_path(name).levels(U)
    assert alpha.dtype == torch.float32
    assert torch.allclose(alpha.square(), alpha_bar, rtol=2e-4, atol=1e-9)
    assert torch.allclose(sigma.square(), 1 - alpha_bar, rtol=1e-5, atol=1e-7)


def test_flow_is_the_straight_path_and_edm_is_log_normal():
    alpha, sigma = noise_path("flow").levels(U)
    assert torch.allclose(sigma, U)
    assert torch.allclose(alpha + sigma, torch.ones(1))
    alpha, sigma = noise_path("edm").levels(torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(alpha, torch.ones_like(alpha))
    assert abs(sigma.log().mean() - LOG_RATIO_MEAN) < 0.03
    assert abs(sigma.log().std() - LOG_RATIO_SD) < 0.03


@pytest.mark.parametrize("path", PATHS)
def test_ratios_grow_with_time(path: str):
    ratios = noise_path(path).ratios()
    assert (ratios.diff() > 0).all()
    alpha, sigma = noise_path(path).levels(TIMES)
    assert torch.allclose(ratios, sigma / alpha)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("u", [0.0, 1.0])
def test_the_ends_of_time_are_finite(path: str, u: float):
    alpha, sigma = noise_path(path).levels(torch.full((2,), u))
    x, time = network_input(torch.ones(2, 3), alpha, sigma)
    for values in (alpha, sigma, x, time):
        assert values.isfinite().all()
    for target in TARGETS:
        assert x0_of(torch.ones(2, 3), torch.ones(2, 3), alpha, sigma, target).isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("target", TARGETS)
def test_the_regression_target_tells_x0_at_every_level(path: str, target: str):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, NUM_LEVELS, 5, generator=generator, dtype=torch.float64)
    alpha, sigma = noise_path(path).levels(TIMES)
    xt = noised(x0, noise, alpha, sigma)
    wanted = regression_target(x0, noise, alpha, sigma, target)
    assert torch.allclose(x0_of(wanted, xt, alpha, sigma, target), x0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "epsilon"])
def test_float32_is_enough_for_all_but_epsilon(path: str, target: str):
    x0, noise = torch.randn(2, NUM_LEVELS, 5, generator=torch.Generator().manual_seed(0))
    alpha, sigma = noise_path(path).levels(U)
    wanted = regression_target(x0, noise, alpha, sigma, target)
    assert torch.allclose(x0_of(wanted, noised(x0, noise, alpha, sigma), alpha, sigma, target), x0, atol=2e-5)


def test_an_error_of_epsilon_grows_by_157_at_the_end_of_the_linear_path():
    alpha, sigma = (level[-1:] for level in noise_path("linear").levels(U))
    xt = torch.zeros(1, 1)
    error = x0_of(torch.ones(1, 1), xt, alpha, sigma, "epsilon") - x0_of(xt, xt, alpha, sigma, "epsilon")
    assert error.item() == pytest.approx(-157, abs=0.5)


def test_edm_is_karras_preconditioning_for_data_of_sd_1():
    """c_skip, c_out and c_in as in table 1 of the paper, written out."""
    x0, noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    sigma = torch.logspace(-2, 2, 8)
    alpha = torch.ones(8)
    xt = noised(x0, noise, alpha, sigma)
    c_skip = (1 / (sigma**2 + 1))[:, None]
    c_out = (sigma / (sigma**2 + 1).sqrt())[:, None]
    output = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(x0_of(output, xt, alpha, sigma, "edm"), c_skip * xt + c_out * output, atol=1e-5)
    x, time = network_input(xt, alpha, sigma)
    assert torch.allclose(x, xt / (sigma**2 + 1).sqrt()[:, None])
    assert torch.allclose(time, sigma.log() / 4, atol=1e-6)


def test_the_input_has_variance_1_and_depends_on_the_ratio_alone():
    x0, noise = torch.randn(2, 4000, 1, generator=torch.Generator().manual_seed(3))
    for path in PATHS:
        alpha, sigma = (level.expand(4000) for level in noise_path(path).levels(torch.tensor([0.6])))
        x, time = network_input(noised(x0, noise, alpha, sigma), alpha, sigma)
        assert x.std().item() == pytest.approx(1, abs=0.05)
        again = network_input(noised(x0, noise, 3 * alpha, 3 * sigma), 3 * alpha, 3 * sigma)
        assert torch.allclose(again[0], x, atol=1e-5)
        assert torch.allclose(again[1], time, atol=1e-5)


@pytest.mark.parametrize("target", ["v", "edm"])
def test_an_output_of_0_is_the_best_guess_of_standard_normal_latents(target: str):
    """E[x_0 | x_t] = alpha x_t / (alpha^2 + sigma^2)."""
    alpha, sigma = noise_path("flow").levels(torch.tensor([0.1, 0.5, 0.9]))
    xt = torch.randn(3, 4)
    best = (alpha / (alpha**2 + sigma**2))[:, None] * xt
    assert torch.allclose(x0_of(torch.zeros(3, 4), xt, alpha, sigma, target), best, atol=1e-6)


@pytest.mark.parametrize(
    ("sd", "floor"),
    [(0.05, 0.020), (0.1, 0.041), (0.2, 0.081), (0.3, 0.115), (0.5, 0.173), (1, 0.276), (2, 0.395), (5, 0.555)],
)
def test_the_floor_of_the_noise_error_on_the_linear_path(sd: float, floor: float):
    assert epsilon_floor(sd**2, "linear") == pytest.approx(floor, abs=1e-3)


def test_the_floor_of_wide_latents_and_of_the_cosine_path():
    assert epsilon_floor(100, "linear") == pytest.approx(0.663, abs=1e-3)
    assert epsilon_floor(1, "cosine") == pytest.approx(0.496, abs=1e-3)


def test_the_floor_is_what_the_best_denoiser_reaches():
    """Of latents of different variance: with E[noise | x_t], which is linear, over cells and times."""
    generator = torch.Generator().manual_seed(0)
    variance = torch.tensor([0.25, 4.0])
    u = torch.rand(40_000, generator=generator)
    x0 = variance.sqrt() * torch.randn(40_000, 2, generator=generator)
    noise = torch.randn(40_000, 2, generator=generator)
    alpha, sigma = (level[:, None] for level in noise_path("cosine").levels(u))
    best = sigma * (alpha * x0 + sigma * noise) / (alpha**2 * variance + sigma**2)
    assert pointwise(best, noise).mean().item() == pytest.approx(epsilon_floor(variance, "cosine"), abs=5e-3)


def test_pointwise_is_the_mean_over_latents_of_each_cell():
    assert np.allclose(pointwise(torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.zeros(2, 2)), [5, 2])


def test_names_that_there_are_not():
    with pytest.raises(ValueError, match="no noise path 'sqrt': there are linear, cosine, flow, edm"):
        noise_path("sqrt")
    with pytest.raises(ValueError, match="no target 'score'"):
        x0_of(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1), torch.ones(1), "score")
