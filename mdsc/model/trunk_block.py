"""What the blocks of a trunk have in common: gated attention, then a gated MLP, both modulated by the condition (adaLN,
Peebles & Xie 2023, arXiv 2212.09748); and that they may be computed anew in the backward pass, and compiled.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mdsc.model.configuration import MdscConfig
from mdsc.model.keyed_dropout import KeyedDropout, Keys
from mdsc.model.zero_start import ZeroLinear


def modulate(
    x: Float[Tensor, "batch genes hidden"],
    shift: Float[Tensor, "batch 1 hidden"],
    scale: Float[Tensor, "batch 1 hidden"],
) -> Float[Tensor, "batch genes hidden"]:
    """Layer norm without affine, then the condition's own."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class TrunkBlock(nn.Module):
    """Subclasses compute in `add(*inputs, keys of both dropouts)`, which ends with `gated`."""

    is_recomputed = False
    """Whether nothing but the input is kept for the backward pass, which computes the block anew."""
    is_compiled = False
    """Whether torch.compile fuses what it does."""

    def __init__(self, config: MdscConfig, attention: type[nn.Module], num_parts: int):
        """num_parts: shifts, scales and gates that the condition gives."""
        super().__init__()
        mlp_size = int(config.mlp_ratio * config.hidden_size)
        self.modulation = ZeroLinear(config.hidden_size, num_parts * config.hidden_size)
        self.attention = attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, mlp_size), nn.GELU("tanh"), nn.Linear(mlp_size, config.hidden_size)
        )
        self.attention_dropout = KeyedDropout(config.dropout)
        self.mlp_dropout = KeyedDropout(config.dropout)

    def forward(self, *inputs) -> Tensor:
        # Read here: on the way back, when a block is computed anew, its dropout has lost the keys of the batch.
        keys = self.attention_dropout.keys, self.mlp_dropout.keys
        add = partial(_compiled_add(type(self)), self) if self.is_compiled else self.add
        if self.is_recomputed and torch.is_grad_enabled():
            return checkpoint(add, *inputs, *keys, use_reentrant=False)
        return add(*inputs, *keys)

    def gated(
        self,
        x: Float[Tensor, "batch genes hidden"],
        attended: Float[Tensor, "batch genes hidden"],
        parts: tuple[Float[Tensor, "batch 1 hidden"], ...],
        attention_keys: Keys | None,
        mlp_keys: Keys | None,
    ) -> Float[Tensor, "batch genes hidden"]:
        """x + gate * attended, then the same with an MLP. Gates start at zero: the identity.

        parts: gate of the attention; shift, scale and gate of the MLP.
        """
        gate_a, shift_m, scale_m, gate_m = parts
        x = x + gate_a * self.attention_dropout(attended, attention_keys)
        return x + gate_m * self.mlp_dropout(self.mlp(modulate(x, shift_m, scale_m)), mlp_keys)


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
