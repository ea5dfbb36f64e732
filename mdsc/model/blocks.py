"""DiT blocks: adaLN-Zero, attention over a set of genes, MLP (Peebles & Xie 2023, arXiv 2212.09748)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mdsc.model.attention import Attending, attend
from mdsc.model.configuration import MdscConfig
from mdsc.model.keyed_dropout import Keys
from mdsc.model.trunk_block import TrunkBlock, modulate
from mdsc.model.zero_start import ZeroLinear


class Attention(nn.Module):
    """Every gene looks at every real gene. No positional code: genes are a set."""

    is_causal = False  # transformers' attention functions default to causal

    def __init__(self, config: MdscConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Float[Tensor, "batch genes hidden"], attending: Attending
    ) -> Float[Tensor, "batch genes hidden"]:
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        mixed = attend(attending, self, query, key, value)
        return self.out(rearrange(mixed, "b n h d -> b n (h d)"))


class DiTBlock(TrunkBlock):
    """x + gate * attention(modulated x), then the same with an MLP. Gates start at zero: the identity."""

    def __init__(self, config: MdscConfig):
        super().__init__(config, Attention, num_parts=6)

    def add(
        self,
        x: Float[Tensor, "batch genes hidden"],
        condition: Float[Tensor, "batch hidden"],
        attending: Attending,
        attention_keys: Keys | None,
        mlp_keys: Keys | None,
    ) -> Float[Tensor, "batch genes hidden"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None, :].chunk(6, dim=-1)
        attended = self.attention(modulate(x, shift_a, scale_a), attending)
        return self.gated(x, attended, (gate_a, shift_m, scale_m, gate_m), attention_keys, mlp_keys)


class FinalLayer(nn.Module):
    """Modulated norm and a linear head to logits, in float32: bf16 logits would spoil likelihoods."""

    def __init__(self, config: MdscConfig):
        super().__init__()
        self.modulation = ZeroLinear(config.hidden_size, 2 * config.hidden_size)
        self.head = ZeroLinear(config.hidden_size, config.num_tokens)

    def forward(
        self, x: Float[Tensor, "batch genes hidden"], condition: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch genes tokens"]:
        with torch.autocast(x.device.type, enabled=False):
            shift, scale = self.modulation(condition.float())[:, None, :].chunk(2, dim=-1)
            return self.head(modulate(x.float(), shift, scale))
