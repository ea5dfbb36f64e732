"""Keeps a loss or gradient that is not finite away from the weights, and stops a run that has nothing else left."""

from jaxtyping import Bool, Float
from torch import Tensor

from mdsc.errors import UserError

PATIENCE = 10


def is_admitted(loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether a step may change weights; decided on the device. Both must be the same on all processes."""
    return loss.isfinite() & gradient_norm.isfinite()


class FiniteGuard:
    """Counts the steps that were not finite, once the host has heard of them; the same on all processes."""

    def __init__(self) -> None:
        self.skipped = 0
        self.in_a_row = 0

    def heard(self, step: int, is_finite: bool, what: str = "") -> None:
        """Of step `step`; `what` tells the batch of a bad one. UserError after PATIENCE bad ones in a row."""
        if is_finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= PATIENCE:
            raise UserError(
                f"training stopped at step {step}: the loss or a gradient was not finite {PATIENCE} times in a row "
                f"(no weight was changed by these{f'; the last was {what}' if what else ''}).\n"
                "Look at these cells; else try a lower --train.learning-rate or --train.precision fp32, from a state "
                "before the first of them (--resume)."
            )
