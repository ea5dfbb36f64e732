"""Keeps a loss or gradient that is not finite away from the weights, and stops a run that has nothing else left."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdsc.errors import UserError

PATIENCE = 10


class FiniteGuard:
    """Counts the steps that were not finite, on the device; `check` is where the host looks."""

    def __init__(self, device: torch.device):
        self._skipped = torch.zeros((), dtype=torch.long, device=device)
        self._in_a_row = torch.zeros_like(self._skipped)
        self._most_in_a_row = torch.zeros_like(self._skipped)

    def admit(self, loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether this step may change weights. Both must be the same on all processes."""
        is_finite = loss.isfinite() & gradient_norm.isfinite()
        self._skipped += ~is_finite
        self._in_a_row = (self._in_a_row + 1) * ~is_finite
        self._most_in_a_row = torch.maximum(self._most_in_a_row, self._in_a_row)
        return is_finite

    def check(self, step: int) -> int:
        """Number of steps skipped so far; UserError if PATIENCE of them came in a row. The host waits here."""
        skipped, most = torch.stack([self._skipped, self._most_in_a_row]).tolist()
        if most >= PATIENCE:
            raise UserError(
                f"training stopped at step {step}: the loss or a gradient was not finite {PATIENCE} times in a row "
                "(no weight was changed by these).\nTry a lower --train.learning-rate, or --train.precision fp32."
            )
        return skipped
