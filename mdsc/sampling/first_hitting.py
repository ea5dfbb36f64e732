"""The first-hitting sampler: the hidden positions of a cell in a uniformly random order (Zheng et al. 2024, arXiv
2409.02908, section 4).

Of n hidden positions the next becomes visible at t u^(1/n), and each is as likely to be the one. The model is told no
time, so that the times need not be drawn: with `num_steps` >= n every position is drawn alone, given all before it,
which is the model's own law, exactly, in n forward passes. With fewer steps the order stays as random and is cut into
groups that are drawn at once: after step k of T the first max(k, round(n alpha_s)) of the cell's order are visible, s
the time of the grid after step k. That is the ancestral sampler given that each step reveals as many positions as it
is expected to; no step is wasted on nothing, and none takes more than its share by chance.
"""

from collections.abc import Iterator

import torch

from mdsc.diffusion.evidence import Evidence
from mdsc.sampling.ancestral import time_grid
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.revealing import Revealing


def first_hitting(evidence: Evidence, revealing: Revealing, options: SamplerOptions) -> Iterator[Evidence]:
    """The state after each step. Each cell has its own order, and its own n."""
    n = evidence.hidden.sum(dim=1, keepdim=True)
    u = revealing.uniform(evidence).masked_fill(~evidence.hidden, torch.inf)
    place = u.argsort(dim=1).argsort(dim=1)  # of each position in its cell's order
    state = evidence
    for k, s in enumerate(time_grid(options.num_steps, options.grid)[1:], start=1):
        # alpha_s <= k / T on both grids, so that with T >= n steps this is k.
        num_visible = (n * (1 - s)).round().clamp(min=k)
        state = revealing.reveal(state, state.hidden & (place < num_visible))
        yield state
