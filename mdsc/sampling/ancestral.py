"""The ancestral sampler of absorbing-state diffusion: from all hidden at t = 1 to nothing hidden at t = 0.

From t to s < t a hidden position becomes visible with chance (alpha_s - alpha_t) / (1 - alpha_t), whatever the others
do, and its token is drawn from the model's p(x | visible) (MDLM, arXiv 2406.07524). Positions that become visible in
the same step are drawn independently of each other: that is the sampler's one approximation, and it vanishes as the
steps grow in number. Which positions come first never depends on what was drawn: an order by the probability of the
sampled token would fill in the zeros first.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence, Predict
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.sampling.categorical import draw
from mdsc.sampling.options import SamplerOptions

DEFAULTS = SamplerOptions()


def time_grid(num_steps: int, grid: str) -> list[float]:
    """Times from 1 down to exactly 0. uniform: i / T; cosine: cos(pi/2 (1 - i/T)), which starts with small steps while
    little is visible (MD4, arXiv 2406.04329)."""
    fractions = [i / num_steps for i in range(num_steps, 0, -1)]
    if grid == "uniform":
        return [*fractions, 0.0]
    assert grid == "cosine", grid
    return [*(math.cos(math.pi / 2 * (1 - fraction)) for fraction in fractions), 0.0]


@torch.no_grad()
def ancestral(
    predict: Predict,
    evidence: Evidence,
    tokenizer: Tokenizer,
    options: SamplerOptions = DEFAULTS,
    *,
    seed: int,
    draw_index: int = 0,
    callback: Callable[[int, Evidence], None] | None = None,
) -> Int[Tensor, "batch genes"]:
    """Counts of whole cells, drawn from the model given the visible ones, which stay as they are.

    seed, draw_index: the draws of a cell are a function of (seed, draw_index, its cell_index, gene) and of the logits,
    in any batch and in any order of the genes; another draw_index gives an independent draw of the same cells.
    callback(step, state): called after each step with what is visible then; step 0 .. num_steps - 1.

    The model is told no time, so that its answer is out of date only when something has become visible: a step that
    reveals nothing costs no forward pass.
    """
    state = evidence
    for step, (t, s) in enumerate(pairwise(time_grid(options.num_steps, options.grid))):
        alpha_t, alpha_s = 1 - t, 1 - s
        chance = (alpha_s - alpha_t) / (1 - alpha_t)  # 1 in the last step: what is left is drawn like all the rest
        row, column = state.hidden.nonzero(as_tuple=True)
        cell, gene = state.cell_index[row], state.gene_ids[row, column]
        now = keyed_uniform(Stream.REVEAL, seed, draw_index, step, cell, gene) < chance
        row, column, cell, gene = row[now], column[now], cell[now], gene[now]
        if len(row) > 0:
            logits = state.predict(predict, tokenizer)[row, column]
            # A position is drawn once, so that its key needs no step.
            u = keyed_uniform(Stream.TOKEN, seed, draw_index, cell, gene)
            state = _reveal(state, row, column, draw(logits, u, options.temperature), tokenizer)
        if callback is not None:
            callback(step, state)
    assert not state.hidden.any()
    assert torch.equal(state.counts[evidence.visible], evidence.counts[evidence.visible])
    return state.counts


def _reveal(state: Evidence, row: Tensor, column: Tensor, drawn: Tensor, tokenizer: Tokenizer) -> Evidence:
    tokens = torch.zeros_like(state.gene_ids)
    tokens[row, column] = drawn
    decoded = tokenizer.decode(tokens, state.counts, state.visible)
    counts, visible = state.counts.clone(), state.visible.clone()
    counts[row, column] = decoded[row, column].to(counts.dtype)
    visible[row, column] = True
    return replace(state, counts=counts, visible=visible)
