"""Likelihoods by the chain rule in random orders: as many passes as there are targets, no other noise than the order.

In one order, sum_i -log p(x_i | x_G, those before i) is the exact negative log-likelihood of a law that sums to one.
Its mean over all orders is what `nelbo` estimates too, from far fewer passes; for a handful of targets this is the
sharper of the two. For exact conditionals every order gives -log p(x_T | x_G) itself (Uria, Murray & Larochelle 2014,
arXiv 1310.1757).
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Predict
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.sampling.nelbo import Nelbo, token_losses


@torch.no_grad()
def chain_rule(
    predict: Predict,
    tokenizer: Tokenizer,
    cells: CellBatch,
    *,
    target: Bool[Tensor, "cells genes"] | None = None,
    num_orders: int = 4,
    seed: int = 0,
) -> Nelbo:
    """-log p(x_T | x_G) / |T| in `num_orders` independent orders of the targets; arguments as of `nelbo`."""
    assert num_orders >= 1, num_orders
    target = ~cells.is_pad if target is None else target & ~cells.is_pad
    assert target.any(dim=1).all(), "each cell has a target"
    orders = [_in_one_order(predict, tokenizer, cells, target, seed, order) for order in range(num_orders)]
    return Nelbo(torch.stack(orders, dim=1))


def _in_one_order(
    predict: Predict,
    tokenizer: Tokenizer,
    cells: CellBatch,
    target: Bool[Tensor, "cells genes"],
    seed: int,
    order: int,
) -> Float64[Tensor, " cells"]:
    score = keyed_uniform(Stream.HIDE, seed, order, cells.cell_index[:, None], cells.gene_ids)
    # Place of each target in the order, 0, 1, ...; the others stand behind.
    place = score.masked_fill(~target, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    number = target.sum(dim=1)
    total = torch.zeros(len(cells), dtype=torch.float64, device=target.device)
    for step in range(int(number.max())):
        hidden = target & (place >= step)
        losses = token_losses(predict, tokenizer, cells, hidden)
        total = total + torch.where(hidden & (place == step), losses, 0.0).sum(dim=1)
    return total / number
