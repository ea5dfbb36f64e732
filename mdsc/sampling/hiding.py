"""Which counts of a cell are taken as unknown when it is filled in."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mdsc.diffusion.corruption import hide_fraction
from mdsc.errors import UserError


@dataclass(frozen=True)
class Hiding:
    mask_ratio: float
    impute_zeros: bool
    seed: int

    @classmethod
    def of(cls, mask_ratio: float | None, impute_zeros: bool, seed: int) -> "Hiding":
        """Checked as a user gave them."""
        if mask_ratio is not None and not 0 <= mask_ratio <= 1:
            raise UserError(f"--mask-ratio is {mask_ratio}; it takes a share between 0 and 1, e.g. 0.8.")
        if impute_zeros and mask_ratio:
            raise UserError(
                f"--impute-zeros hides the zeros and nothing else; give it with --mask-ratio 0, not {mask_ratio}."
            )
        if not impute_zeros and not mask_ratio:
            what = "is not given" if mask_ratio is None else "0 hides nothing"
            raise UserError(
                f"--mask-ratio {what}: give the share of each cell's genes to hide, e.g. --mask-ratio 0.8,\n"
                "or --mask-ratio 0 --impute-zeros to treat the zeros of the cells as possibly missing."
            )
        return cls(mask_ratio or 0.0, impute_zeros, seed)

    def check(self, num_genes: int) -> None:
        """UserError if it hides nothing of so many genes."""
        if not self.impute_zeros and round(self.mask_ratio * num_genes) == 0:
            raise UserError(
                f"--mask-ratio {self.mask_ratio} hides none of the {num_genes} modelled genes; give a larger one."
            )

    def hidden(
        self, counts: Int[Tensor, "cells genes"], cell_index: Int[Tensor, " cells"]
    ) -> Bool[Tensor, "cells genes"]:
        if self.impute_zeros:
            return counts == 0
        # Which are hidden is a function of seed and cell alone; no count is looked at.
        no_pads = torch.zeros_like(counts, dtype=torch.bool)
        return hide_fraction(no_pads, self.mask_ratio, seed=self.seed, cell_index=cell_index)

    def said(self, num_genes: int) -> str:
        if self.impute_zeros:
            return f"hiding the zeros among the {num_genes:,} modelled genes of each cell"
        number = round(self.mask_ratio * num_genes)
        if number == num_genes:
            return f"hiding all {num_genes:,} modelled genes of each cell: its counts say nothing, as with --num-cells"
        return f"hiding {number:,} of the {num_genes:,} modelled genes of each cell"
