"""Latents of perturbed cells drawn from the head: guidance, the sampler, and the centre that is added at the end."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.samplers import draw

CELLS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    sampler: str
    num_steps: int
    guidance: float = 1.0


def keyed_normal(*keys: int | Tensor) -> Float[Tensor, "..."]:
    """Standard normal numbers, a function of their keys (`mdsc.diffusion.keyed_random`)."""
    return torch.special.ndtri(keyed_uniform(*keys)).float()


@torch.no_grad()
def draw_latents(
    head: GaussianHead,
    vectors: Float[Tensor, "cells d"],
    is_perturbed: Bool[Tensor, " cells"],
    pooled: Float[Tensor, "cells k"],
    cells: Float[Tensor, "cells k"],
    centre: Float[Tensor, "cells k"],
    *,
    options: DrawOptions,
    seed: int,
    keys: Int[Tensor, " cells"],
) -> Float[Tensor, "cells k"]:
    """Latents with their centre, on the head's device. `keys`: of each cell's noise, beside the seed.

    Where the denoiser looks at sets, consecutive cells make one; the last set is filled up with copies of its cells.
    """
    size = head.config.set_size if head.config.denoiser == "set" else 1
    at_once = max(CELLS_AT_ONCE // size, 1) * size
    # One for all parts: of as many made alike, each would have the same noise, and ddpm's cells be copies.
    generator = torch.Generator(device=head.device).manual_seed(seed)
    parts = []
    for first in range(0, len(keys), at_once):
        rows = torch.arange(first, min(first + at_once, len(keys)))
        filled = rows[torch.arange(-(-len(rows) // size) * size) % len(rows)]
        x0 = _draw(
            head,
            *(tensor[filled.to(tensor.device)].to(head.device) for tensor in (vectors, is_perturbed, pooled, cells)),
            options=options,
            seed=seed,
            generator=generator,
            keys=keys[filled.to(keys.device)].to(head.device),
            group_size=size,
        )
        parts.append(x0[: len(rows)] + centre[rows.to(centre.device)].to(head.device))
    return torch.cat(parts)


def _draw(head, vectors, is_perturbed, pooled, cells, *, options, seed, generator, keys, group_size) -> Tensor:
    told = head.condition(vectors, is_perturbed, pooled, cells)
    untold = head.condition(vectors, is_perturbed, pooled, cells, torch.zeros_like(is_perturbed))

    def denoise(xt: Tensor, alpha: float, sigma: float) -> Tensor:
        levels = [torch.full((len(xt),), value, device=xt.device, dtype=torch.float32) for value in (alpha, sigma)]

        def x0(condition: Tensor) -> Tensor:
            return head.denoised(xt, *levels, condition, group_size)

        if options.guidance == 1:
            return x0(told)
        if options.guidance == 0:
            return x0(untold)
        return options.guidance * x0(told) + (1 - options.guidance) * x0(untold)

    # Keys 2 n and 2 n + 1 have opposite noise: each cell has the law that it would have alone, their mean little noise.
    # Within a set of n cells that takes some share 1 / (n - 1) off its distance to others (docs/decisions/0011).
    noise = keyed_normal(
        Stream.NOISE, seed, (keys // 2)[:, None], torch.arange(head.config.latent_size, device=keys.device)
    )
    noise = torch.where((keys % 2 == 0)[:, None], noise, -noise)
    return draw(
        denoise,
        noise,
        sampler=options.sampler,
        num_steps=options.num_steps,
        path=noise_path(head.config.noise),
        generator=generator,
    )
