"""Filling the hidden counts of cells, and generating cells of which nothing is known, a bounded number at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence, Predict
from mdsc.sampling.options import DEFAULTS, SamplerOptions
from mdsc.sampling.samplers import draw_hidden

MAX_LOGITS = 2**25
"""Logits (cells * genes * V) that the model computes at once: 128 MiB in float32, and a few times that in passing."""


@dataclass(frozen=True)
class Filled:
    """Counts of whole cells; visible ones are the evidence's own, pads are 0."""

    sampled: Int[Tensor, "cells genes"]
    """One draw of all hidden counts of a cell together."""
    mean: Float32[Tensor, "cells genes"]
    """Expected count at each position, given the visible counts alone."""


def fill(
    predict: Predict,
    tokenizer: Tokenizer,
    evidence: Evidence,
    options: SamplerOptions = DEFAULTS,
    *,
    seed: int = 0,
    max_logits: int = MAX_LOGITS,
    device: torch.device | str | None = None,
) -> Filled:
    """Sample the hidden counts of each cell, and their posterior means.

    options, seed: see `draw_hidden`; the means depend on none of them.
    max_logits: bound on cells * genes * V in a forward pass (but at least one cell); it changes no result.
    device: where the model is; results come back to where the evidence is.
    """
    size = cells_at_once(evidence, tokenizer, max_logits)
    return Filled(
        _in_parts(lambda part: draw_hidden(predict, part, tokenizer, options, seed=seed), evidence, size, device),
        _in_parts(lambda part: posterior_mean(predict, tokenizer, part), evidence, size, device),
    )


@torch.no_grad()
def posterior_mean(predict: Predict, tokenizer: Tokenizer, evidence: Evidence) -> Float32[Tensor, "batch genes"]:
    """Expected counts given the visible ones, by one forward pass; visible counts are kept, pads are 0."""
    p = torch.softmax(evidence.predict(predict, tokenizer).float(), dim=-1)
    counts = tokenizer.decode_table(evidence.counts, evidence.visible).float()
    mean = (p * counts[:, None, :]).sum(dim=-1)
    return torch.where(evidence.hidden, mean, evidence.counts.float())


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
    max_logits: int = MAX_LOGITS,
    device: torch.device | str | None = None,
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
    size = cells_at_once(nothing, tokenizer, max_logits)
    return _in_parts(lambda part: draw_hidden(predict, part, tokenizer, options, seed=seed), nothing, size, device)


def cells_at_once(cells: Evidence | CellBatch, tokenizer: Tokenizer, max_logits: int) -> int:
    """How many cells one forward pass may take."""
    return max(1, max_logits // (cells.counts.shape[1] * tokenizer.num_tokens))


def _in_parts(
    compute: Callable[[Evidence], Tensor], evidence: Evidence, size: int, device: torch.device | str | None
) -> Tensor:
    home = evidence.counts.device
    return torch.cat([compute(part.to(device or home)).to(home) for part in evidence.split(size)])
