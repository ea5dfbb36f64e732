"""The ancestral sampler of absorbing-state diffusion: from all hidden at t = 1 to nothing hidden at t = 0.

From t to s < t a hidden position becomes visible with chance (alpha_s - alpha_t) / (1 - alpha_t), whatever the others
do, and its token is drawn from the model's p(x | visible) (MDLM, arXiv 2406.07524). Positions that become visible in
the same step are drawn independently of each other: that is the sampler's one approximation, and it vanishes as the
steps grow in number. Which positions come first never depends on what was drawn: an order by the probability of the
sampled token would fill in the zeros first.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

from mdsc.diffusion.evidence import Evidence
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.revealing import Revealing


def time_grid(num_steps: int, grid: str) -> list[float]:
    """Times from 1 down to exactly 0. uniform: i / T; cosine: cos(pi/2 (1 - i/T)), which starts with small steps while
    little is visible (MD4, arXiv 2406.04329)."""
    fractions = [i / num_steps for i in range(num_steps, 0, -1)]
    if grid == "uniform":
        return [*fractions, 0.0]
    assert grid == "cosine", grid
    return [*(math.cos(math.pi / 2 * (1 - fraction)) for fraction in fractions), 0.0]


def ancestral(evidence: Evidence, revealing: Revealing, options: SamplerOptions) -> Iterator[Evidence]:
    """The state after each step.

    The model is told no time, so that its answer is out of date only when something has become visible: a step that
    reveals nothing of a cell costs no forward pass of that cell.
    """
    state = evidence
    for step, (t, s) in enumerate(pairwise(time_grid(options.num_steps, options.grid))):
        alpha_t, alpha_s = 1 - t, 1 - s
        chance = (alpha_s - alpha_t) / (1 - alpha_t)  # 1 in the last step: what is left is drawn like all the rest
        # A position is drawn once, so that the key of its token needs no step.
        state = revealing.reveal(state, state.hidden & (revealing.uniform(state, step) < chance))
        yield state
