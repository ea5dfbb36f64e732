"""The `latent` backbone: genes are read into a few latent tokens, and read out again (Perceiver IO, arXiv 2107.14795).

Latents attend to the visible nonzero genes (`LatentRead`), blocks work on the latents, and every gene attends to these
(`LatentReadout`). The cost is linear in the genes. Visible zeros are not read: of a gene that was seen to be 0 the
others learn from the cell-state pathway alone, which weighs it as evidence, and it is one of many.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from mdsc.model.attention import Attending, attend
from mdsc.model.configuration import MdscConfig
from mdsc.model.keyed_dropout import KeyedDropout, Keys
from mdsc.model.trunk_block import TrunkBlock, modulate
from mdsc.model.zero_start import ZeroLinear

WIDTH_STEP = 64
"""Columns that are read of a cell are a multiple of this: few shapes, and such as kernels like."""


def most_nonzero(tokens: Integer[np.ndarray, "cells genes"], num_tokens: int) -> int:
    """The largest number of nonzero genes in a cell. Of whole cells it bounds what is visible, however much is hidden.

    tokens: those of data, of which 0 is count 0, then the mask and the pad; on the host, where a step must not wait.
    """
    return int(((tokens > 0) & (tokens < num_tokens)).sum(axis=1).max(initial=0))


def is_nonzero(tokens: Int[Tensor, "batch genes"], num_tokens: int) -> Bool[Tensor, "batch genes"]:
    """Where a count above 0 is visible."""
    return (tokens > 0) & (tokens < num_tokens)


def columns_of(
    wanted: Bool[Tensor, "batch genes"], width: int
) -> tuple[Int[Tensor, "batch width"], Bool[Tensor, "batch width"]]:
    """Places of the wanted genes of each cell, in order, from column 1 on; column 0 is left free.

    Returns:
        places, 0 where a column is not filled,
        and which columns are: 1 .. number of wanted genes, of which there must be fewer than `width`.
    """
    column = torch.where(wanted, wanted.cumsum(dim=1), width)
    place = torch.arange(wanted.shape[1], device=wanted.device).expand(wanted.shape)
    # All that are not wanted share a column of their own, which is cut off.
    places = place.new_zeros(len(wanted), width + 1).scatter(1, column, place)[:, :width]
    number = wanted.sum(dim=1, keepdim=True)
    column = torch.arange(width, device=wanted.device)
    return places, (column > 0) & (column <= number)


class CrossAttention(nn.Module):
    """Queries look at a set of another kind. No positional code on either side."""

    is_causal = False  # transformers' attention functions default to causal

    def __init__(self, config: MdscConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: Float[Tensor, "batch queries hidden"],
        source: Float[Tensor, "batch sources hidden"],
        attending: Attending,
    ) -> Float[Tensor, "batch queries hidden"]:
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.num_heads)
        key, value = rearrange(self.key_value(source), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        mixed = attend(attending, self, query, key, value)
        return self.out(rearrange(mixed, "b n h d -> b n (h d)"))


class LatentRead(nn.Module):
    """Learned latents look at the visible nonzero genes of a cell, and at a null that is there when no gene is."""

    def __init__(self, config: MdscConfig):
        super().__init__()
        self.num_tokens = config.num_tokens
        self.latents = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        self.null = nn.Parameter(torch.zeros(config.hidden_size))
        self.modulation = ZeroLinear(config.hidden_size, 4 * config.hidden_size)
        self.attention = CrossAttention(config)
        self.dropout = KeyedDropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch genes hidden"],
        tokens: Int[Tensor, "batch genes"],
        condition: Float[Tensor, "batch hidden"],
        implementation: str,
        max_nonzero: int | None,
    ) -> Float[Tensor, "batch latents hidden"]:
        """max_nonzero: no cell has more visible nonzero genes; None finds out, for which the host waits for a GPU."""
        wanted = is_nonzero(tokens, self.num_tokens)
        most = int(wanted.sum(dim=1).max()) if max_nonzero is None else min(max_nonzero, tokens.shape[1])
        width = (most // WIDTH_STEP + 1) * WIDTH_STEP  # one column more than `most` at least, for the null
        places, filled = columns_of(wanted, width)
        first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
        genes = x.flatten(0, 1).index_select(0, (first + places).flatten()).view(len(x), width, -1)
        column = torch.arange(width, device=x.device)
        source = torch.where((column == 0)[:, None], self.null, genes)
        how = over_columns(implementation, filled | (column == 0), len(self.latents))

        shift, scale, shift_s, scale_s = self.modulation(condition)[:, None, :].chunk(4, dim=-1)
        latents = self.latents.expand(len(x), -1, -1)
        read = self.attention(modulate(latents, shift, scale), modulate(source, shift_s, scale_s), how)
        return latents + self.dropout(read)


class LatentReadout(TrunkBlock):
    """Each gene looks at the latents, then goes through an MLP of its own. Gates start at zero: the identity."""

    def __init__(self, config: MdscConfig):
        super().__init__(config, CrossAttention, num_parts=8)

    def add(
        self,
        x: Float[Tensor, "batch genes hidden"],
        latents: Float[Tensor, "batch latents hidden"],
        condition: Float[Tensor, "batch hidden"],
        attending: Attending,
        attention_keys: Keys | None,
        mlp_keys: Keys | None,
    ) -> Float[Tensor, "batch genes hidden"]:
        """attending: without a mask, as all latents are there; what pads would learn is of no use to anybody."""
        shift_a, scale_a, gate_a, shift_s, scale_s, shift_m, scale_m, gate_m = self.modulation(condition)[
            :, None, :
        ].chunk(8, dim=-1)
        source = modulate(latents, shift_s, scale_s)
        attended = self.attention(modulate(x, shift_a, scale_a), source, attending)
        return self.gated(x, attended, (gate_a, shift_m, scale_m, gate_m), attention_keys, mlp_keys)


def over_columns(implementation: str, filled: Bool[Tensor, "batch width"], num_queries: int) -> Attending:
    """Attention to the filled columns alone.

    Flash and flex attention take masks for queries and keys of one kind; sdpa is in their place here, as the few
    latents leave them nothing to gain.
    """
    mask = filled[:, None, None, :].expand(-1, 1, num_queries, -1)
    if implementation == "eager":
        return Attending("eager", torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf))
    takes_mask = implementation.startswith("sdpa") and implementation != "sdpa_flash"
    return Attending(implementation if takes_mask else "sdpa", mask)
