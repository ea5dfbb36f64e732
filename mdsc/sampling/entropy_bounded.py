"""The entropy-bounded sampler: a step draws the positions that the model is surest of (Ben-Hamu et al. 2025, arXiv
2505.24857).

Of the hidden positions in ascending order of their entropies H_1 <= H_2 <= ... the first k are drawn at once, k the
largest with sum_{i<=k} H_i - max_{i<=k} H_i <= gamma: a bound of what drawing them independently can cost in
Kullback-Leibler divergence. An entropy belongs to the law of a position and not to what is then drawn from it; an order
by the probability of the *sampled* token fills in the zeros first, and is badly biased.

gamma = 0 draws one position at a time, and beside it those that are certain: the model's own law. A gamma that is given
is the same in each step, and the last of the `num_steps` steps takes whatever is left. Without one, gamma is the
entropy of all that is hidden divided by the number of steps left, cell by cell and anew in each step: so steps cost
about the same, and nothing is left over.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F

from mdsc.diffusion.evidence import Evidence
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.revealing import Revealing


def entropy_bounded(evidence: Evidence, revealing: Revealing, options: SamplerOptions) -> Iterator[Evidence]:
    """The state after each step. A cell with nothing hidden costs no forward pass."""
    # Equal entropies are common, and the order of genes in the batch must not matter: ties go by a draw of the gene's.
    tie = revealing.uniform(evidence)
    state = evidence
    for steps_left in range(options.num_steps, 0, -1):
        active = state.hidden.any(dim=1)
        if active.any():
            hidden = state.hidden[active]
            logits = revealing.logits(state, active)[hidden]
            h = torch.full(hidden.shape, torch.inf, dtype=torch.float64, device=hidden.device)
            h[hidden] = entropy(logits, options.temperature)
            now = torch.zeros_like(state.visible)
            now[active] = surest(h, tie[active], steps_left, options.entropy_budget)
            state = revealing.fill_in(state, now, logits[now[active][hidden]])
        yield state


def entropy(logits: Float[Tensor, "n V"], temperature: float) -> Float64[Tensor, " n"]:
    """Of softmax(logits / temperature), in nats."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    return torch.special.entr(log_p.exp()).sum(dim=-1).double()


def surest(
    h: Float64[Tensor, "batch genes"],
    tie: Float64[Tensor, "batch genes"],
    steps_left: int,
    budget: float | None,
) -> Bool[Tensor, "batch genes"]:
    """The positions of lowest entropy that are drawn now, at least one of each row.

    h: entropies, inf where a position is not hidden; each row has one that is. tie: what orders equal entropies.
    """
    by_tie = tie.argsort(dim=1)
    order = by_tie.gather(1, h.gather(1, by_tie).argsort(dim=1, stable=True))
    ascending = h.gather(1, order)
    # Sum without maximum: the k-th is taken as long as those before it stay within the budget.
    before = F.pad(ascending[:, :-1].cumsum(dim=1), (1, 0))
    if steps_left == 1:
        gamma = torch.inf
    elif budget is not None:
        gamma = budget
    else:
        total = ascending.where(ascending < torch.inf, 0).cumsum(dim=1)[:, -1:]
        gamma = total / steps_left
    taken = (before <= gamma) & (ascending < torch.inf)
    return torch.zeros_like(taken).scatter(1, order, taken)
