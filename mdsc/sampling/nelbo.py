"""The diffusion bound of cells' negative log-likelihood, by Monte Carlo over what is hidden."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.corruption import hide_at, strata
from mdsc.diffusion.evidence import Predict, hide
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.diffusion.losses import cross_entropy_per_cell
from mdsc.sampling.inpaint import MAX_LOGITS, cells_at_once


@dataclass(frozen=True)
class Nelbo:
    """In nats per gene, of tokens (not of counts)."""

    per_cell: Float64[Tensor, " cells"]
    per_cell_error: Float64[Tensor, " cells"]
    """Standard error over the draws, as if they were not stratified: too large rather than too small; NaN for one."""

    @property
    def mean(self) -> float:
        return self.per_cell.mean().item()

    @property
    def error(self) -> float:
        """Standard error of the mean over cells, for cells drawn at random from a population; NaN for one cell."""
        return _standard_error(self.per_cell[:, None].T).item()


@torch.no_grad()
def nelbo(
    predict: Predict,
    tokenizer: Tokenizer,
    cells: CellBatch,
    *,
    num_draws: int = 8,
    seed: int = 0,
    form: str = "fixed_k",
    schedule: str = "linear",
    max_logits: int = MAX_LOGITS,
) -> Nelbo:
    """Upper bound of -log p(tokens of a cell) / n for its n real positions, equal to it for exact conditionals.

    A cell's draws are strata of (0, 1), which start at its own place: a function of (seed, its cell_index).
    form, schedule: see `hide_at`; both forms have the same expectation, and fixed_k has much less variance.
    """
    assert num_draws >= 1, num_draws

    def one_draw(part: CellBatch, draw: int) -> Tensor:
        start = keyed_uniform(Stream.STRATUM, seed, part.cell_index)
        u = strata(start, torch.full_like(part.cell_index, draw), num_draws)
        position = torch.arange(part.is_pad.shape[1], device=part.is_pad.device)
        scores = keyed_uniform(Stream.HIDE, seed, draw, part.cell_index[:, None], position)
        corruption = hide_at(u, scores, part.is_pad, form=form, schedule=schedule)
        logits = hide(part, corruption.hidden).predict(predict, tokenizer)
        return cross_entropy_per_cell(logits, part.tokens, corruption.hidden, corruption.weight, part.is_pad).double()

    losses = torch.cat(
        [
            torch.stack([one_draw(part, draw) for draw in range(num_draws)], dim=1)
            for part in cells.split(cells_at_once(cells, tokenizer, max_logits))
        ]
    )
    return Nelbo(losses.mean(dim=1), _standard_error(losses))


def _standard_error(draws: Float64[Tensor, "cells draws"]) -> Float64[Tensor, " cells"]:
    """Of the mean over the last axis."""
    n = draws.shape[1]
    if n == 1:
        return torch.full_like(draws[:, 0], torch.nan)
    return draws.std(dim=1) / n**0.5
