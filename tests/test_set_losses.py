"""Distances between sets of cells: against slow sums, their floors, and gradients where cells coincide."""

import pytest
import torch
from torch import Tensor

from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.set_losses import WIDTHS, energy_biased, energy_unbiased, mmd2_biased, mmd2_unbiased
from mdsc.perturbation.targets import pointwise

LOSSES = [mmd2_unbiased, mmd2_biased, energy_unbiased, energy_biased]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_against_sums_over_pairs():
    x, y = normal(1, 3, 2).double(), 1 + normal(1, 4, 2, seed=1).double()

    def pairs(a: Tensor, b: Tensor, kernel, *, others: bool) -> float:
        values = [kernel(p, q) for i, p in enumerate(a[0]) for j, q in enumerate(b[0]) if not (others and i == j)]
        return float(sum(values) / len(values))

    def distance(p: Tensor, q: Tensor) -> Tensor:
        return (p - q).square().sum().sqrt()

    median = torch.tensor([distance(p, q) for i, p in enumerate(y[0]) for q in y[0][i + 1 :]]).sort().values[2]

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return sum(torch.exp(-(distance(p, q) ** 2) / (2 * (w * median) ** 2)) for w in WIDTHS) / 4

    for mmd, energy in ((mmd2_unbiased, energy_unbiased), (mmd2_biased, energy_biased)):
        unbiased = mmd is mmd2_unbiased
        by_kernel, by_distance = (
            (pairs(x, x, f, others=unbiased), pairs(y, y, f, others=unbiased), pairs(x, y, f, others=False))
            for f in (kernel, distance)
        )
        assert mmd(x, y).item() == pytest.approx(by_kernel[0] + by_kernel[1] - 2 * by_kernel[2], abs=1e-6)
        assert energy(x, y).item() == pytest.approx(by_distance[2] - (by_distance[0] + by_distance[1]) / 2, abs=1e-6)


@pytest.mark.parametrize(("n", "floor"), [(64, 0.152), (128, 0.078), (256, 0.036)])
def test_the_floor_of_the_biased_energy_and_of_the_unbiased_one(n: int, floor: float):
    """Between sets of one law: E|x-y| / n = sqrt(2k) / n, which a trained model would be taken to have left over."""
    x, y = normal(40, n, 50), normal(40, n, 50, seed=1)
    assert energy_biased(x, y).mean().item() == pytest.approx(floor, abs=0.006)
    assert energy_biased(x, y).mean().item() == pytest.approx(100**0.5 / n, rel=0.05)
    unbiased = energy_unbiased(x, y)
    assert unbiased.mean().abs() < 4 * unbiased.std() / 40**0.5
    assert 0.2 < (unbiased < 0).float().mean() < 0.8


def test_the_unbiased_mmd_is_0_on_average_and_the_biased_one_is_not():
    x, y = normal(200, 16, 10), normal(200, 16, 10, seed=1)
    unbiased, biased = mmd2_unbiased(x, y), mmd2_biased(x, y)
    error = unbiased.std() / 200**0.5
    assert unbiased.mean().abs() < 4 * error
    assert biased.mean() > 20 * error
    assert (biased > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_sets_that_differ_are_told_apart(loss):
    x, y = normal(30, 32, 10), normal(30, 32, 10, seed=1)
    same = loss(x, y)
    assert (loss(x + 1, y) > same.max()).all()  # another mean
    assert loss(2 * x, y).min() > same.mean()  # the same mean, another spread


@pytest.mark.parametrize("loss", [mmd2_biased, energy_biased])
def test_true_noise_permuted_across_cells_is_at_distance_0_with_a_pointwise_error_of_2(loss):
    """So the parent's MMD on noise cannot tell a denoiser from a shuffle; a pointwise loss has to stay on."""
    noise = normal(1, 384, 50)
    permuted = noise[:, torch.randperm(384, generator=torch.Generator().manual_seed(2))]
    assert loss(permuted, noise).abs().item() < 1e-5
    assert pointwise(permuted[0], noise[0]).mean().item() == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_group_is_by_itself_and_cells_have_no_order(loss):
    x, y = normal(3, 8, 4), normal(3, 9, 4, seed=1)
    together = loss(x, y)
    assert together.shape == (3,)
    for group in range(3):
        assert torch.allclose(loss(x[[group]], y[[group]])[0], together[group], atol=1e-6)
    assert torch.allclose(loss(x.flip(1), y.roll(4, 1)), together, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("coinciding", ["all cells", "x is y", "far away"])
def test_gradients_are_finite_where_cells_coincide(loss, coinciding: str):
    x, y = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    x = {"all cells": torch.zeros_like(x), "x is y": y.clone(), "far away": x + 1e6}[coinciding]
    y = torch.zeros_like(y) if coinciding == "all cells" else y
    x.requires_grad_()
    value = loss(x, y)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_following_the_gradient_brings_the_sets_together(loss):
    y = normal(1, 64, 3)
    x = (3 + 0.3 * normal(1, 64, 3, seed=1)).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.1)
    before = loss(x, y).item()
    for _ in range(80):
        optimizer.zero_grad()
        loss(x, y).sum().backward()
        optimizer.step()
    assert loss(x, y).item() < 0.2 * before


def test_one_cell_is_no_set():
    with pytest.raises(ValueError, match="sets of 1 and 5 cells: each needs two"):
        energy_unbiased(torch.zeros(2, 1, 3), torch.zeros(2, 5, 3))


def test_a_set_loss_of_x0_falls_with_the_noise_level():
    """On x_0-hat of the best denoiser, which is drawn to the mean at high noise: why it is weighted to low noise."""
    x0, noise = normal(8, 128, 10), normal(8, 128, 10, seed=1)
    by_level = []
    for u in (0.05, 0.5, 0.95):
        alpha, sigma = (level.item() for level in noise_path("flow").levels(torch.tensor([u])))
        best = alpha * (alpha * x0 + sigma * noise) / (alpha**2 + sigma**2)
        by_level.append(energy_unbiased(best, normal(8, 128, 10, seed=2)).mean().item())
    assert by_level[0] < by_level[1] < by_level[2]
