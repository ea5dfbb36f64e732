"""What the conditions of a cell say of it before any of its genes is seen: the prior mean of its factors and depth.

A factor model with covariates: z ~ N(M c, diag(1/lambda)) where c is the sum over the conditions, so that

    E[z | visible genes, c] = (diag(lambda) + V' W V)^-1 (V' W (x - b) + diag(lambda) M c)

(Bishop 2006, section 12.2.4, with a mean of the prior). Conditions count for all where nothing is visible, and fade as
genes tell more; what is learned of them where some genes are visible holds where none are. M is linear in c: what two
conditions do adds up where they have never been seen together.

A cell of which a part was seen under other conditions, `c'`, and whose other genes are asked for under c, is the same
cell moved: z = z' + M (c - c'), where z' is what the visible genes say under c' (abduction, action, prediction; Pearl
2009, "Causality", section 7.1). Each visible value of it, moved by v_g . M (c - c'), is a value under c: so moved, they
and what is drawn under c are one set of evidence, and the posterior of both is exact.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.amp import autocast

from mdsc.model.zero_start import ZeroLinear


class CellPrior(NamedTuple):
    """Prior means, by what they are of; all in float32."""

    state: Float[Tensor, "batch state"]
    """Factors of the cell-state pathway, in their prior standard deviations."""
    factors: Float[Tensor, "batch factors"]
    """Factors of the fixed model behind `GeneEvidence`."""
    log_depth: Float[Tensor, " batch"]
    """log of the cell's depth over the mean cell's."""


class Moved(NamedTuple):
    """How far a cell is from the one that was seen."""

    by: CellPrior
    """The prior means under the conditions that are asked for, less those under which it was seen."""
    positions: Bool[Tensor, "batch genes"]
    """Where visible counts are those that were seen."""

    @classmethod
    def of(cls, prior: CellPrior, seen: CellPrior, positions: Bool[Tensor, "batch genes"]) -> "Moved":
        return cls(CellPrior(*(asked - before for asked, before in zip(prior, seen, strict=True))), positions)

    def values(
        self, loadings: Float[Tensor, "batch genes factors"], factors: Float[Tensor, "batch factors"]
    ) -> Float[Tensor, "batch genes"]:
        """What a move of the factors adds to the log1p counts that were seen."""
        return (loadings @ factors[..., None])[..., 0] * self.positions

    def counts(self, counts: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch genes"]:
        """Those that were seen at the depth that the cell has now."""
        return torch.where(self.positions, counts * self.by.log_depth.exp()[:, None], counts)


class ConditionPrior(nn.Module):
    """One linear map to all of them, which starts at zero: the law of all training cells."""

    def __init__(self, condition_size: int, state_size: int, factor_size: int):
        super().__init__()
        self.sizes = (state_size, factor_size, 1)
        self.mean = ZeroLinear(condition_size, sum(self.sizes), bias=False)  # M

    def forward(self, condition: Float[Tensor, "batch condition"]) -> CellPrior:
        with autocast(condition.device.type, enabled=False):
            state, factors, log_depth = self.mean(condition.float()).split(self.sizes, dim=-1)
            return CellPrior(state, factors, log_depth[:, 0])
