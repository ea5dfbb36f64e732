"""What a trained scVI expects of the counts of a cell of which some are visible: mean counts under draws of its state.

A cell's library size is not told beyond its visible counts: L(z) = visible depth / (the decoder's share of the visible
genes), so that the visible genes together have the depth that they have.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mdsc.evaluation.predictor import Counts, Visible

if TYPE_CHECKING:
    from scvi.module import VAE

NUM_DRAWS = 8
"""Draws of the state that a prediction is the mean of; the same standard normal numbers for each cell."""
REFINE_STEPS = 100
REFINE_RATE = 0.05

Means = Float32[np.ndarray, "draws cells genes"]


@dataclass(frozen=True)
class VisibleAsWhole:
    """The usual protocol: scVI was trained on matrices in which hidden counts are zeros, at this very share of hidden
    genes, and reads such a cell as it reads any other. What it expects is then the share of visible genes times the
    count, for it has seen each gene as zero that much more often; the means are divided by that share."""

    module: "VAE"

    def means(self, counts: Counts, visible: Visible) -> Means:
        with torch.inference_mode():
            mean, sd = _encoded(self.module, torch.from_numpy(counts).float())
            shares = _shares(self.module, _draws(mean, sd)).numpy()
        depth = np.maximum(counts.sum(axis=1), 1) / np.maximum(visible.mean(axis=1), 1e-9)
        return shares * depth[:, None].astype(np.float32)


@dataclass(frozen=True)
class WholeToVisible:
    """scVI was trained on whole cells and is asked with the visible counts of others.

    refine_steps = 0: its encoder reads them, hidden counts as zeros and visible ones made larger by the share that is
    hidden, so that a gene has on average what it has in a whole cell. More: from there the posterior of each cell goes
    uphill on the evidence lower bound of the visible genes alone, which is what scVI's own model says of a cell with
    missing genes; the encoder was never taught that.
    """

    module: "VAE"
    refine_steps: int

    def means(self, counts: Counts, visible: Visible) -> Means:
        x, seen = torch.from_numpy(counts).float(), torch.from_numpy(visible)
        with torch.inference_mode():
            mean, sd = _encoded(self.module, x / seen.float().mean(dim=1, keepdim=True).clamp(min=1e-9))
        if self.refine_steps:
            mean, sd = self._refined(mean.clone(), sd.clone(), x, seen)
        with torch.inference_mode():
            shares = _shares(self.module, _draws(mean, sd))
            depth = x.sum(dim=1).clamp(min=1) / (shares * seen).sum(dim=-1).clamp(min=1e-9)
            return (shares * depth[..., None]).numpy()

    def _refined(self, mean: Tensor, sd: Tensor, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the Gaussian of greatest bound, by Adam with one draw a step. Cells do not mix."""
        mean, log_sd = mean.requires_grad_(), sd.log().requires_grad_()
        theta = self.module.px_r.detach().exp()
        depth = x.sum(dim=1, keepdim=True).clamp(min=1)
        numbers = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam([mean, log_sd], lr=REFINE_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.refine_steps)
        for _ in range(self.refine_steps):
            z = mean + log_sd.exp() * torch.randn(mean.shape[1], generator=numbers)
            share = _shares(self.module, z[None])[0]
            rate = share * (depth / (share * seen).sum(dim=1, keepdim=True).clamp(min=1e-9))
            # Of NB(x; rate, theta), what depends on the rate.
            log_p = x * torch.log(rate + 1e-10) - (x + theta) * torch.log(rate + theta)
            divergence = (mean**2 + (2 * log_sd).exp() - 1) / 2 - log_sd
            optimizer.zero_grad(set_to_none=True)
            (divergence.sum() - (log_p * seen).sum()).backward(inputs=[mean, log_sd])
            optimizer.step()
            schedule.step()
        return mean.detach(), log_sd.detach().exp()


def dispersions(module: "VAE") -> Float32[np.ndarray, " genes"]:
    """theta of each gene, as scVI has trained it."""
    return module.px_r.detach().exp().numpy()


def _encoded(module: "VAE", x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (cells, latent) of q(z | x); an empty cell counts as one of a single molecule."""
    x[x.sum(dim=1) == 0, 0] = 1
    qz = module.inference(x, torch.zeros(len(x), 1))["qz"]
    return qz.loc, qz.scale


def _draws(mean: Float[Tensor, "cells latent"], sd: Float[Tensor, "cells latent"]) -> Tensor:
    numbers = torch.Generator().manual_seed(0)
    return mean + sd * torch.randn(NUM_DRAWS, 1, mean.shape[1], generator=numbers)


def _shares(module: "VAE", z: Float[Tensor, "draws cells latent"]) -> Float[Tensor, "draws cells genes"]:
    """Each gene's share of the molecules, summing to 1 over genes."""
    flat = z.flatten(0, 1)
    px = module.generative(flat, torch.zeros(len(flat), 1), torch.zeros(len(flat), 1))["px"]
    return px.scale.unflatten(0, z.shape[:2])
