"""Steps against quality for each sampler of the Gaussian head, by an exact denoiser: the sampler's error alone is left.

    python benchmarks/gaussian_samplers.py --json gaussian_samplers.json

The law is a mixture of four Gaussians in 20 latents, standardised; its posterior mean is known in closed form.
Distances are to as many cells of the law itself; the first row is of other cells of the law, so it is noise alone.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from result_tables import ResultTable, write_markdown
from torch import Tensor

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.samplers import (
    DEFAULT_SAMPLER,
    DEFAULT_STEPS,
    SAMPLERS,
    draw,
    noise_ratios,
    num_evaluations,
    variance_preserving,
)
from mdsc.perturbation.set_losses import energy_unbiased

NUM_LATENTS, WEIGHTS = 20, (0.4, 0.3, 0.2, 0.1)
EDM_LEVELS = " at EDM's levels"
"""Of the multistep solvers, for comparison with the levels that they have."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    num_steps: tuple[int, ...] = (5, 10, 20, 25, 50)
    """Steps of each sampler; ddpm is run with 1,000 too."""
    paths: tuple[str, ...] = ("flow", "linear")
    """Noise paths."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the law and of the noise."""
    num_cells: int = 3000
    """Cells that are drawn, and that they are compared with."""
    json: Path | None = None
    """File for the numbers."""
    markdown: Path | None = None
    """File for the tables."""


class Mixture:
    """A mixture of Gaussians with diagonal covariances whose latents have mean 0 and sd 1."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = torch.tensor(WEIGHTS)
        means = torch.randn(len(WEIGHTS), NUM_LATENTS, generator=self.generator)
        variances = 0.05 + 0.4 * torch.rand(len(WEIGHTS), NUM_LATENTS, generator=self.generator)
        centre = self.weights @ means
        variance = self.weights @ (variances + means.square()) - centre.square()
        self.means, self.variances = (means - centre) / variance.sqrt(), variances / variance

    def cells(self, num_cells: int) -> Tensor:
        component = torch.multinomial(self.weights, num_cells, replacement=True, generator=self.generator)
        return self.means[component] + self.variances[component].sqrt() * self.noise(num_cells)

    def noise(self, num_cells: int) -> Tensor:
        return torch.randn(num_cells, NUM_LATENTS, generator=self.generator)

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0 | x_t = x]."""
        total = alpha**2 * self.variances + sigma**2
        from_mean = x[:, None] - alpha * self.means  # (cells, components, latents)
        share = self.shares(from_mean, total)
        return (share[:, :, None] * (self.means + alpha * self.variances / total * from_mean)).sum(dim=1)

    def shares(self, from_mean: Tensor, variances: Tensor) -> Tensor:
        return (self.weights.log() - (from_mean.square() / variances + variances.log()).sum(dim=2) / 2).softmax(dim=1)

    def errors(self, x: Tensor, real: Tensor) -> dict[str, float]:
        sizes = self.shares(x[:, None] - self.means, self.variances).mean(dim=0)
        return {
            "energy": 2 * energy_unbiased(x[None], real[None]).item(),
            "mean": x.mean(dim=0).abs().max().item(),
            "sd": (x.std(dim=0) - 1).mean().item(),
            "weights": (sizes - self.weights).abs().max().item(),
        }


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(SamplerConfig, args=argv, description=__doc__)
    torch.set_num_threads(1)
    results = {path: measure(config, path) for path in config.paths}
    tables = [table(config, path, found) for path, found in results.items()]
    for one in tables:
        one.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps(results, indent=1) + "\n")
    if config.markdown is not None:
        introduction = f"With an exact denoiser. The default is {DEFAULT_SAMPLER} in {DEFAULT_STEPS} steps."
        write_markdown(config.markdown, "Samplers of the Gaussian head", introduction, tables)


def measure(config: SamplerConfig, path: str) -> dict[str, dict[str, float]]:
    """Means over seeds, by sampler and steps."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in config.seeds:
        law = Mixture(seed)
        real, others, noise = law.cells(config.num_cells), law.cells(config.num_cells), law.noise(config.num_cells)
        found.setdefault("the law itself", []).append(law.errors(others, real) | {"evaluations": 0, "seconds": 0.0})
        for name, evaluations, sample in walks(config, law, noise, path):
            start = time.perf_counter()
            x = sample()
            seconds = time.perf_counter() - start
            found.setdefault(name, []).append(law.errors(x, real) | {"evaluations": evaluations, "seconds": seconds})
    return {
        name: {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        | {"energy_sd": statistics.stdev(run["energy"] for run in runs) if len(runs) > 1 else 0.0}
        for name, runs in found.items()
    }


def walks(config: SamplerConfig, law: Mixture, noise: Tensor, path: str) -> list[tuple[str, int, Callable[[], Tensor]]]:
    """Name, evaluations and run of each sampler at each number of steps."""

    def ours(sampler: str, steps: int) -> Callable[[], Tensor]:
        return lambda: draw(
            law.posterior_mean, noise, path=path, sampler=sampler, num_steps=steps, generator=law.generator
        )

    def at_edm_levels(sampler: str, steps: int) -> Callable[[], Tensor]:
        ratios = noise_ratios("euler_edm", steps, noise_path(path))
        return lambda: variance_preserving(law.posterior_mean, noise, ratios, sampler)

    chosen = []
    for sampler in SAMPLERS:
        for steps in (*config.num_steps, *((1000,) if sampler == "ddpm" else ())):
            chosen.append((f"{sampler} {steps}", num_evaluations(sampler, steps), ours(sampler, steps)))
    for sampler in ("dpm++", "unipc"):
        for steps in config.num_steps:
            chosen.append((f"{sampler}{EDM_LEVELS} {steps}", steps, at_edm_levels(sampler, steps)))
    return chosen


def table(config: SamplerConfig, path: str, found: dict[str, dict[str, float]]) -> ResultTable:
    rows = [
        [
            name, f"{one['evaluations']:.0f}", f"{1e3 * one['energy']:.2f} ± {1e3 * one['energy_sd']:.2f}",
            f"{one['mean']:.3f}", f"{one['sd']:+.1%}", f"{one['weights']:.3f}", f"{one['seconds']:.2f}",
        ]
        for name, one in found.items()
    ]  # fmt: skip
    columns = ("sampler, steps", "evaluations", "energy x 1000", "mean", "sd", "weights", "s")
    note = (
        f"{config.num_cells} cells, {len(config.seeds)} seeds. energy: 2E|x-y| - E|x-x'| - E|y-y'|, unbiased. mean: "
        "the largest of a latent. sd: mean of all latents, less 1. weights: largest error of a component's share."
    )
    return ResultTable(f"Levels of the {path} path", columns, rows, note)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
