"""What the blocks of a trunk have in common: they may be computed anew in the backward pass, and compiled."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdsc.model.keyed_dropout import KeyedDropout


class TrunkBlock(nn.Module):
    """Subclasses have `attention_dropout` and `mlp_dropout`, and compute in `add(*inputs, keys of both)`."""

    attention_dropout: KeyedDropout
    mlp_dropout: KeyedDropout
    is_recomputed = False
    """Whether nothing but the input is kept for the backward pass, which computes the block anew."""
    is_compiled = False
    """Whether torch.compile fuses what it does."""

    def forward(self, *inputs) -> Tensor:
        # Read here: on the way back, when a block is computed anew, its dropout has lost the keys of the batch.
        keys = self.attention_dropout.keys, self.mlp_dropout.keys
        add = partial(_compiled_add(type(self)), self) if self.is_compiled else self.add
        if self.is_recomputed and torch.is_grad_enabled():
            return checkpoint(add, *inputs, *keys, use_reentrant=False)
        return add(*inputs, *keys)

    def add(self, *inputs) -> Tensor:
        raise NotImplementedError


@cache
def _compiled_add(kind: type[TrunkBlock]) -> Callable[..., Tensor]:
    """One function for all blocks of a kind: what is compiled for one of them serves the others.

    Inside `forward`, so that hooks of FSDP2 and what is recomputed stay out of the graph, and names of weights as they
    are.
    """
    return torch.compile(kind.add)


def recompute_blocks(model: nn.Module) -> None:
    """Let all blocks of a model keep no more than their input for the backward pass. The gradients stay the same.

    Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    for module in model.modules():
        if isinstance(module, TrunkBlock):
            module.is_recomputed = True


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile have all blocks of a model, once they are called."""
    for module in model.modules():
        if isinstance(module, TrunkBlock):
            module.is_compiled = True
