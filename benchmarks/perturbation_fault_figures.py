"""What is wrong with the parent's losses and its PCA, as numbers that need no training, and one of a trained head."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mdsc.data.log_expression import log_normalised
from mdsc.evaluation.perturb_metrics import pearson
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.paired_batches import LatentCells
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.perturbed_cells import PerturbedCells
from mdsc.perturbation.set_losses import energy_biased, energy_unbiased, mmd2_biased, mmd2_unbiased
from mdsc.perturbation.targets import epsilon_floor, noised, x0_of

SET_LOSSES = {
    "MMD, biased": mmd2_biased,
    "MMD, unbiased": mmd2_unbiased,
    "energy, biased": energy_biased,
    "energy, unbiased": energy_unbiased,
}
OWN, OTHER, NONE = "its own", "another perturbation's", "none"
"""Gene vectors that the head is given."""


def permuted_noise(num_sets: int, set_size: int, num_latents: int, seed: int) -> dict[str, float]:
    """Losses of a network that gives the true noise, but each cell another cell's: it knows nothing of its input.

    Cells are turned round by one place, so that none keeps its own. The squared error is 2 in the mean, as that of any
    independent draw; giving 0 always has 1.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_sets, set_size, num_latents, generator=generator)
    given = noise.roll(1, dims=1)
    return {name: loss(given, noise).mean().item() for name, loss in SET_LOSSES.items()} | {
        "squared error": (given - noise).square().mean().item()
    }


def set_loss_floors(num_sets: int, set_size: int, num_latents: int, seed: int) -> dict[str, float]:
    """Losses between independent sets of one law, N(0, I), for which nothing should be left."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, num_sets, set_size, num_latents, generator=generator)
    return {name: loss(x, y).mean().item() for name, loss in SET_LOSSES.items()}


@torch.no_grad()
def noise_errors(
    head: GaussianHead, training: PerturbedCells, cells: PerturbedCells, *, draws: int, most_cells: int, seed: int
) -> dict[str, float]:
    """Mean squared error of the noise on perturbed cells, over all levels of the head's path; and floors.

    The same noise for each gene vector. floor: of the best denoiser that knows the law of all these cells alone, if
    their latents were normal and independent; floor, perturbation known: that of each perturbation's own law.
    """
    rng = np.random.default_rng(seed)
    known = set(head.vectors.names)
    units = [unit for unit, rows in cells.rows_of.items() if unit.perturbation in known and len(rows) > 1]
    panel, real = LatentCells(training, head), LatentCells(cells, head)
    names = [unit.perturbation for unit in units]
    other = dict(zip(names, names[1:] + names[:1], strict=True))
    found: dict[str, list[Tensor]] = {OWN: [], OTHER: [], NONE: []}
    latents, within = [], []
    for unit in units:
        rows = cells.rows_of[unit]
        rows = rng.permutation(rows)[: max(most_cells // len(units), 2)]
        control = rng.choice(training.controls(unit.context), len(rows))
        pooled, unperturbed = panel.pooled_of(unit.context, training.batch[control])
        vectors = head.vectors_of((unit.perturbation,)).expand(len(rows), -1)
        told = torch.ones(len(rows), dtype=torch.bool)
        centre = head.basis.to_latent(unperturbed + head.shift(vectors, told, pooled))
        x0 = real.latents(rows) - centre
        latents.append(x0)
        within.append(epsilon_floor(x0.var(dim=0), head.config.noise))
        conditions = {
            OWN: head.condition(vectors, told, pooled, panel.latents(control)),
            OTHER: head.condition(
                head.vectors_of((other[unit.perturbation],)).expand(len(rows), -1),
                told, pooled, panel.latents(control),
            ),
            NONE: head.condition(vectors, told, pooled, panel.latents(control), ~told),
        }  # fmt: skip
        for draw in range(draws):
            errors = _errors(head, x0, conditions, seed=int(rng.integers(2**31)), first=draw / draws, draws=draws)
            for name, values in errors.items():
                found[name].append(values)
    floor = epsilon_floor(torch.cat(latents).var(dim=0), head.config.noise)
    return {name: torch.cat(parts).mean().item() for name, parts in found.items()} | {
        "floor": floor,
        "floor, perturbation known": float(np.mean(within)),
    }


def _errors(
    head: GaussianHead,
    x0: Float[Tensor, "cells k"],
    conditions: dict[str, Tensor],
    *,
    seed: int,
    first: float,
    draws: int,
) -> dict[str, Float[Tensor, " cells"]]:
    """One noise for each cell, at times spread evenly over a part of the path: `draws` of these make up all of it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x0.shape, generator=generator)
    within = (torch.randperm(len(x0), generator=generator) + 0.5) / (len(x0) * draws)
    alpha, sigma = noise_path(head.config.noise).levels(first + within)
    xt = noised(x0, noise, alpha, sigma)
    found = {}
    for name, condition in conditions.items():
        output = head(xt, alpha, sigma, condition).output
        x0_hat = x0_of(output, xt, alpha, sigma, head.config.target)
        guess = (xt - alpha[:, None] * x0_hat) / sigma[:, None]
        found[name] = (guess - noise).square().mean(dim=1)
    return found


def own_axes(basis: PcaBasis, training: PerturbedCells, cells: PerturbedCells) -> dict[str, dict[str, float]]:
    """Real cells of unseen perturbations as latents, and back to genes along the axes of training.

    Latents by the PCA of training, and by one of these very cells: nothing is predicted, and the second still fails.
    error: mean squared, over the cells' variance. Of PearsonDelta, the mean over perturbations.
    """
    expression = torch.from_numpy(cells.expression(np.arange(len(cells))))
    own = PcaBasis.fit(log_normalised(cells.counts), basis.size, seed=0)
    control = training.expression(training.controls(cells.contexts[0])).mean(axis=0, dtype=np.float64)
    effects = [_mean(training, rows) - control for rows in map(training.rows_of.get, training.units())]
    shift = np.mean(effects, axis=0)
    cosines = (own.components * basis.components).sum(dim=1)
    found = {}
    for name, reader in (("training cells", basis), ("the cells themselves", own)):
        decoded = basis.to_genes(reader.to_latent(expression))
        error = (decoded - expression).square().mean() / expression.var(dim=0, unbiased=False).mean()
        plain, rest = [], []
        for unit, rows in cells.rows_of.items():
            if unit.perturbation == cells.control:
                continue
            true = _mean(cells, rows) - control
            given = decoded[rows].double().mean(dim=0).numpy() - control
            plain.append(pearson(given, true))
            rest.append(pearson(given - shift, true - shift))
        found[name] = {"error": error.item(), "pearson_delta": float(np.mean(plain)), "pert": float(np.mean(rest))}
    found["axes"] = {
        "cosine": cosines[:10].abs().mean().item(),
        "reversed": int((cosines[:10] < 0).sum()),
        "of": len(cosines[:10]),
    }
    return found


def _mean(cells: PerturbedCells, rows: np.ndarray) -> np.ndarray:
    return cells.expression(rows).mean(axis=0, dtype=np.float64)
