"""What the samplers share: hidden positions become visible, with tokens drawn from the model's p(x | visible).

Draws are a function of (seed, draw_index, [step,] cell, gene) and of the logits, so that they depend neither on the
other cells of a batch nor on the order of the genes.
"""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Float64
from torch import Tensor, zeros_like

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence, Predict
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.sampling.categorical import draw


@dataclass(frozen=True)
class Revealing:
    """A model, and the keys of the draws from it."""

    predict: Predict
    tokenizer: Tokenizer
    temperature: float
    seed: int
    draw_index: int

    def uniform(self, cells: Evidence, *step: int) -> Float64[Tensor, "batch genes"]:
        """What decides which positions are drawn in a step."""
        keys = (self.seed, self.draw_index, *step)
        return keyed_uniform(Stream.REVEAL, *keys, cells.cell_index[:, None], cells.gene_ids)

    def reveal(self, state: Evidence, now: Bool[Tensor, "batch genes"], *step: int) -> Evidence:
        """Draw the hidden positions `now`, independently of each other given what is visible.

        step: given by samplers that may draw a position again. Only cells with a position to draw cost a forward pass.
        """
        active = now.any(dim=1)
        if not active.any():
            return state
        return self.fill_in(state, now, self.logits(state, active)[now[active]], *step)

    def logits(self, state: Evidence, active: Bool[Tensor, " batch"]) -> Float[Tensor, "active genes V"]:
        """Of the cells `active` alone."""
        cells = state if active.all() else state.select(active)
        return cells.predict(self.predict, self.tokenizer)

    def fill_in(
        self, state: Evidence, now: Bool[Tensor, "batch genes"], logits: Float[Tensor, "n V"], *step: int
    ) -> Evidence:
        """Draw the n positions `now` from `logits`, in their order."""
        row, column = now.nonzero(as_tuple=True)
        keys = (self.seed, self.draw_index, *step)
        u = keyed_uniform(Stream.TOKEN, *keys, state.cell_index[row], state.gene_ids[row, column])
        tokens = zeros_like(state.gene_ids)
        tokens[now] = draw(logits, u, self.temperature)
        decoded = self.tokenizer.decode(tokens, state.counts, state.visible).to(state.counts.dtype)
        return replace(state, counts=decoded.where(now, state.counts), visible=state.visible | now)
