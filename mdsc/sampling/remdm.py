"""The remasking sampler: counts that were drawn may be hidden again and drawn anew, given more of the cell (ReMDM, Wang
et al. 2025, arXiv 2503.00307).

From t to s a visible position that is not evidence is hidden again with chance sigma, and a hidden one becomes visible
with chance (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t): alpha_s of them are visible at s, as in ancestral sampling.
sigma is at most sigma_max = min(1, (1 - alpha_s) / alpha_t), where that chance is 1.

Hiding biases nothing; drawing several positions in a step does, and remasking draws more of them. So with exact
conditionals the law nears the model's own as 1 / num_steps without remasking, and as 1 / sqrt(num_steps) for a fixed
eta; for an eta that shrinks as 1 / num_steps it is as fast again. What remasking may gain is on networks that err.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from mdsc.diffusion.evidence import Evidence
from mdsc.sampling.ancestral import time_grid
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.revealing import Revealing


def remdm(evidence: Evidence, revealing: Revealing, options: SamplerOptions) -> Iterator[Evidence]:
    """The state after each step. A step that reveals nothing of a cell costs no forward pass of that cell."""
    state = evidence
    for step, (t, s) in enumerate(pairwise(time_grid(options.num_steps, options.grid))):
        alpha_t, alpha_s = 1 - t, 1 - s
        sigma = remask_chance(alpha_t, alpha_s, options.remask, options.remask_strength)
        chance = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        u = revealing.uniform(state, step)
        again = state.visible & ~evidence.visible & (u < sigma)
        # Both moves start from the same state, and a position is in one of them at most.
        after = revealing.reveal(state, state.hidden & (u < chance), step)
        state = replace(after, counts=after.counts.where(~again, 0), visible=after.visible & ~again)
        yield state


def remask_chance(alpha_t: float, alpha_s: float, remask: str, eta: float) -> float:
    """sigma: cap min(eta, sigma_max), rescale eta sigma_max (ReMDM, section 4.1). 0 in the last step, which reveals
    all."""
    most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
    if remask == "rescale":
        return eta * most
    assert remask == "cap", remask
    return min(eta, most)
