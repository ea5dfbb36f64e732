"""Filling the hidden counts of cells, and generating cells of which nothing is known. All cells at once: who has many
gives them in parts (`mdsc.sampling.pass_size`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence, Predict
from mdsc.sampling.options import DEFAULTS, SamplerOptions
from mdsc.sampling.posterior import Posterior, posterior
from mdsc.sampling.samplers import draw_hidden


@dataclass(frozen=True)
class Filled:
    """Counts of whole cells; visible ones are the evidence's own, pads are 0."""

    draws: tuple[Int[Tensor, "cells genes"], ...]
    """Independent draws, each of all hidden counts of a cell together."""
    posterior: Posterior
    """Of each position by itself, given the visible counts alone."""

    def to(self, device: torch.device | str) -> "Filled":
        return Filled(tuple(draw.to(device) for draw in self.draws), self.posterior.to(device))


def fill(
    predict: Predict,
    tokenizer: Tokenizer,
    evidence: Evidence,
    options: SamplerOptions = DEFAULTS,
    *,
    seed: int = 0,
    num_draws: int = 1,
    with_sd: bool = False,
    levels: Sequence[float] = (),
) -> Filled:
    """Sample the hidden counts of each cell `num_draws` times, and say what is to be expected of each.

    options, seed: see `draw_hidden`; draw d has draw_index d. with_sd, levels: see `posterior`, which depends on
    neither options nor seed.
    """
    return Filled(
        tuple(draw_hidden(predict, evidence, tokenizer, options, seed=seed, draw_index=d) for d in range(num_draws)),
        posterior(predict, tokenizer, evidence, with_sd=with_sd, levels=levels),
    )


def generate(
    predict: Predict,
    tokenizer: Tokenizer,
    gene_ids: Int[Tensor, " genes"],
    num_cells: int,
    options: SamplerOptions = DEFAULTS,
    *,
    first_cell: int = 0,
    categories: Mapping[str, Int[Tensor, " cells"]] | None = None,
    vectors: Mapping[str, Float[Tensor, "cells _"]] | None = None,
    seed: int = 0,
) -> Int[Tensor, "cells genes"]:
    """Counts of `num_cells` new cells over the genes `gene_ids` (vocabulary indices), from no evidence at all.

    first_cell: `cell_index` of the first one, so that cells drawn in parts get the draws of the whole.
    categories, vectors: the conditions of each cell. The other options are those of `fill`.
    """
    shape = (num_cells, len(gene_ids))
    nothing = Evidence(
        gene_ids=gene_ids.expand(shape),
        counts=torch.zeros(shape, dtype=torch.int32, device=gene_ids.device),
        visible=torch.zeros(shape, dtype=torch.bool, device=gene_ids.device),
        is_pad=torch.zeros(shape, dtype=torch.bool, device=gene_ids.device),
        cell_index=torch.arange(first_cell, first_cell + num_cells, device=gene_ids.device),
        categories=categories or {},
        vectors=vectors or {},
    )
    return draw_hidden(predict, nothing, tokenizer, options, seed=seed)
