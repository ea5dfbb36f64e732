"""What one pass of the model says of each hidden count by itself: its mean, standard deviation and quantiles.

The law of a hidden count given the visible ones is the model's law over tokens with the count that each token stands
for: it is at hand whole, and needs no draws. How the counts of *several* genes vary together needs them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence, Predict


@dataclass(frozen=True)
class Posterior:
    """Of each position; visible ones are what they are, pads are 0."""

    mean: Float32[Tensor, "cells genes"]
    """Expected count."""
    sd: Float32[Tensor, "cells genes"] | None
    """Standard deviation, 0 where visible; None where it was not asked for."""
    quantiles: Mapping[float, Int[Tensor, "cells genes"]]
    """For each level q the smallest count that is not exceeded with probability q or more."""

    def to(self, device: torch.device | str) -> "Posterior":
        sd = None if self.sd is None else self.sd.to(device)
        return Posterior(self.mean.to(device), sd, {level: q.to(device) for level, q in self.quantiles.items()})


@torch.no_grad()
def posterior(
    predict: Predict, tokenizer: Tokenizer, evidence: Evidence, *, with_sd: bool = False, levels: Sequence[float] = ()
) -> Posterior:
    """By one forward pass, from the visible counts alone.

    A token that stands for several counts counts as the one that it is decoded to, as it does in draws.
    """
    p = torch.softmax(evidence.predict(predict, tokenizer).float(), dim=-1)
    counts = tokenizer.decode_table(evidence.counts, evidence.visible).float()[:, None, :]
    mean = (p * counts).sum(dim=-1)
    sd = None
    if with_sd:
        # Around the mean: the difference of two moments would lose what is left of float32 where counts are high.
        sd = (p * (counts - mean[..., None]).square()).sum(dim=-1).sqrt() * evidence.hidden
    quantiles = {}
    if levels:
        cumulative = p.double().cumsum(dim=-1)
        for level in levels:
            token = (cumulative < level * cumulative[..., -1:]).sum(dim=-1)
            decoded = tokenizer.decode(token, evidence.counts, evidence.visible)
            quantiles[level] = torch.where(evidence.hidden, decoded.to(evidence.counts.dtype), evidence.counts)
    return Posterior(torch.where(evidence.hidden, mean, evidence.counts.float()), sd, quantiles)
