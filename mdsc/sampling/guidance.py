"""Classifier-free guidance: a condition's effect on a model's answers made stronger, or weaker."""

import torch
from torch import Tensor

from mdsc.diffusion.evidence import Predict
from mdsc.errors import UserError

MOST = 1000.0
"""Of guidance: far beyond what is of use, and far below what float32 cannot hold."""


def guided(predict: Predict, guidance: float) -> Predict:
    """log p = g log p(x | conditions) + (1 - g) log p(x), normalised over each position's tokens.

    Schiff et al. 2024, "Simple guidance mechanisms for discrete diffusion models", arXiv 2412.10193. g = 1 is the
    conditional model as it is, g = 0 the one without any conditions, both in one pass; all else takes two. A token that
    one of the two rules out stays ruled out. Logits come in float32 at least.
    """
    check_guidance(guidance)
    if guidance == 1:
        return predict

    def without_conditions(gene_ids, tokens, counts, is_pad, categories, vectors, *, seen_under=None) -> Tensor:
        # Where no conditions are told, none are told of what was seen under others either.
        return predict(gene_ids, tokens, counts, is_pad, {}, {})

    if guidance == 0:
        return without_conditions

    def with_guidance(*cells, **others) -> Tensor:
        given, free = _log_p(predict(*cells, **others)), _log_p(without_conditions(*cells))
        mixed = guidance * given + (1 - guidance) * free
        is_impossible = given.isneginf() | free.isneginf()
        return torch.log_softmax(mixed.masked_fill(is_impossible, -torch.inf), dim=-1)

    return with_guidance


def check_guidance(guidance: float) -> None:
    """UserError where it is no number that guidance can be."""
    if not 0 <= guidance <= MOST:
        raise UserError(
            f"--guidance is {guidance}; it takes 0 to {MOST:g}: 1 is the model itself, 2 follows conditions more."
        )


def _log_p(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
