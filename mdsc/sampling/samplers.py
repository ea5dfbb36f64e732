"""Drawing the hidden counts of cells: five samplers, which differ in what a step draws at once.

    ancestral        each hidden position with the chance that a grid of times gives
    first_hitting    a uniformly random order, one at a time or in groups of a size that the grid gives
    entropy_bounded  those that the model is surest of, within a budget of entropy
    remdm            as ancestral, and what was drawn may be hidden and drawn again
    one_shot         all at once, for comparison: genes are then independent given the evidence

`num_steps` bounds the forward passes of a cell. Evidence never changes, at no step.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence, Predict
from mdsc.sampling.ancestral import ancestral
from mdsc.sampling.entropy_bounded import entropy_bounded
from mdsc.sampling.first_hitting import first_hitting
from mdsc.sampling.options import DEFAULTS, SamplerOptions
from mdsc.sampling.remdm import remdm
from mdsc.sampling.revealing import Revealing


def one_shot(evidence: Evidence, revealing: Revealing, options: SamplerOptions) -> Iterator[Evidence]:
    yield revealing.reveal(evidence, evidence.hidden)


SAMPLERS: dict[str, Callable[[Evidence, Revealing, SamplerOptions], Iterator[Evidence]]] = {
    "ancestral": ancestral,
    "first_hitting": first_hitting,
    "entropy_bounded": entropy_bounded,
    "remdm": remdm,
    "one_shot": one_shot,
}
"""Each gives the state after each of its steps."""


@torch.no_grad()
def draw_hidden(
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
    in any batch and in any order of the genes; another draw_index gives an independent draw of the same cells. A
    network's own logits differ by rounding in batches of another size, and so, rarely, does a draw; cells that need no
    pass in a step are left out of it.
    callback(step, state): called after each step with what is visible then; step 0 .. num_steps - 1, one_shot's only
    step is 0.
    """
    revealing = Revealing(predict, tokenizer, options.temperature, seed, draw_index)
    steps = SAMPLERS[options.sampler](evidence, revealing, options.resolved())
    state = evidence
    for step, state in enumerate(steps):
        if callback is not None:
            callback(step, state)
    assert not state.hidden.any()
    assert torch.equal(state.counts[evidence.visible], evidence.counts[evidence.visible])
    return state.counts
