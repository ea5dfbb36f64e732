"""The diffusion bound of cells' negative log-likelihood, by Monte Carlo over what is hidden.

Of a cell's target genes x_T, given the others x_G: draw k uniformly from 1 .. |T|, hide k of the targets, and average
-log p(x_i | visible) over them. In expectation that is

    1/|T| E_order[sum_i -log p(x_i | x_G, those before i)]  >=  -1/|T| log p(x_T | x_G),

the mean over all orders of the chain rule (LLaDA, arXiv 2502.09992, its likelihood estimator; Uria, Murray & Larochelle
2014, arXiv 1310.1757), which is equal to the right side for exact conditionals.

Three things make the error small, and none moves the expectation:

- a replicate is an antithetic pair, u and 1 - u: where the one hides few genes the other hides many, and the genes that
  the one hides first the other hides last
- strata of u over the cells of a batch are of no use to a single cell's error; over replicates they would spoil it: the
  replicates are independent, so that their standard deviation tells the error as it is
- a control variate: each target's loss once, with a random half of the targets hidden, then the other half. Replicates
  only have to find out how much less is lost with more visible, not how large each gene's loss is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import CountTokenizer, Tokenizer
from mdsc.diffusion.corruption import Corruption, hide_at
from mdsc.diffusion.evidence import Predict, hide
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.diffusion.losses import cross_entropy, log_probs

CONTROL = -1
"""The replicate's number, in keys, of the control variate."""


@dataclass(frozen=True)
class Nelbo:
    """In nats per target gene, of tokens; `count_losses` is what counts have beside that."""

    replicates: Float64[Tensor, "cells replicates"]
    """Independent estimates of each cell's bound, all without bias."""

    @property
    def per_cell(self) -> Float64[Tensor, " cells"]:
        return self.replicates.mean(dim=1)

    @property
    def per_cell_error(self) -> Float64[Tensor, " cells"]:
        """Standard error over the replicates, with one degree of freedom less than there are; NaN for one."""
        return standard_error(self.replicates)

    @property
    def mean(self) -> float:
        return self.per_cell.mean().item()

    @property
    def error(self) -> float:
        """Standard error of the mean over cells, for cells drawn at random from a population; NaN for one cell."""
        return standard_error(self.per_cell[None])[0].item()


@torch.no_grad()
def nelbo(
    predict: Predict,
    tokenizer: Tokenizer,
    cells: CellBatch,
    *,
    target: Bool[Tensor, "cells genes"] | None = None,
    num_replicates: int = 4,
    seed: int = 0,
    form: str = "fixed_k",
    schedule: str = "linear",
) -> Nelbo:
    """Upper bound of -log p(x_T | x_G) / |T| for each cell, equal to it for exact conditionals.

    target: x_T, all real positions where not given; the other real positions are x_G and always visible. Genes that are
    to be neither seen nor scored are left out of `cells`.
    num_replicates: pairs of draws. With the two passes of the control variate each takes 2 * num_replicates + 2 passes.
    seed: a draw is a function of (seed, replicate, cell_index, gene) alone.
    form, schedule: see `hide_at`; both forms have the same expectation, and fixed_k has much less variance.

    A pass takes all the cells that are given: hand over as many as suit the memory.
    """
    assert num_replicates >= 1, num_replicates
    target = ~cells.is_pad if target is None else target & ~cells.is_pad
    assert target.any(dim=1).all(), "each cell has a target"

    def loss(hidden: Tensor) -> Tensor:
        return token_losses(predict, tokenizer, cells, hidden)

    def scores(replicate: int) -> Tensor:
        return keyed_uniform(Stream.HIDE, seed, replicate, cells.cell_index[:, None], cells.gene_ids)

    number = target.sum(dim=1)
    middle = torch.full_like(number, 0.5 - 1e-9, dtype=torch.float64)  # half of an even number, and not one more
    half = hide_at(middle, scores(CONTROL), ~target, form="fixed_k").hidden
    control = loss(half) + loss(target & ~half)
    whole = control.sum(dim=1) / number

    def rest(corruption: Corruption) -> Tensor:
        excess = torch.where(corruption.hidden, loss(corruption.hidden) - control, 0.0)
        return excess.sum(dim=1) * corruption.weight / number

    replicates = []
    for replicate in range(num_replicates):
        u, score = keyed_uniform(Stream.STRATUM, seed, replicate, cells.cell_index), scores(replicate)
        pair = [hide_at(*one, ~target, form=form, schedule=schedule) for one in ((u, score), (1 - u, 1 - score))]
        replicates.append(whole + (rest(pair[0]) + rest(pair[1])) / 2)
    return Nelbo(torch.stack(replicates, dim=1))


def token_losses(
    predict: Predict, tokenizer: Tokenizer, cells: CellBatch, hidden: Bool[Tensor, "cells genes"]
) -> Float64[Tensor, "cells genes"]:
    """-log p(token | what is not hidden), in nats, at hidden positions; 0 elsewhere."""
    logits = hide(cells, hidden).predict(predict, tokenizer)
    loss = cross_entropy(log_probs(logits), cells.tokens.masked_fill(~hidden, 0)).double()
    return torch.where(hidden, loss, 0.0)


def count_losses(
    tokenizer: CountTokenizer, cells: CellBatch, target: Bool[Tensor, "cells genes"]
) -> Float64[Tensor, " cells"]:
    """-log p(counts | their tokens) / |T|: added to the bound of tokens it makes one of counts."""
    losses = tokenizer.log_count_given_token(cells.counts)
    return torch.where(target, losses, 0.0).sum(dim=1) / target.sum(dim=1)


def standard_error(replicates: Float64[Tensor, "cells replicates"]) -> Float64[Tensor, " cells"]:
    """Of the mean over the last axis."""
    n = replicates.shape[1]
    if n == 1:
        return torch.full_like(replicates[:, 0], torch.nan)
    return replicates.std(dim=1) / n**0.5
