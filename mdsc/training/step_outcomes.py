"""What a step tells the host: was it finite, and has any process been asked to stop?

On a GPU the host hears of it some steps later, so that it never waits for the step in flight. All processes hear of a
step at the same place of the loop, and so may then speak with each other.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

LAG = 2
"""Steps that a GPU may be ahead."""


@dataclass(frozen=True)
class StepOutcome:
    step: int
    """Number of optimiser steps done, this one included."""
    loss: float
    gradient_norm: float
    is_finite: bool
    is_stopping: bool
    """Whether any process wants to stop."""
    cell_losses: Float[Tensor, " cells"]
    """Of this process's cells, on the device."""
    cell_index: Int[Tensor, " cells"]
    """Their places in the global batch."""


class StepOutcomes:
    """Values go in right after the step and come out when the device has them."""

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._pending: deque[tuple] = deque()

    def add(
        self, step: int, values: Float[Tensor, "4"], cell_losses: Float[Tensor, " cells"], cell_index: Tensor
    ) -> None:
        """`values`: loss, norm of the gradient, 1 if the step was admitted, above 0 if any process wants to stop."""
        ready = None
        if self._is_cuda:
            values = torch.empty(4, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append((step, values, ready, cell_losses, cell_index))

    def take(self, *, all_steps: bool = False) -> Iterator[StepOutcome]:
        """The steps that are LAG behind, or all of them, for which the host waits."""
        most = LAG if self._is_cuda and not all_steps else 0
        while len(self._pending) > most:
            step, values, ready, cell_losses, cell_index = self._pending.popleft()
            if ready is not None:
                ready.synchronize()
            loss, norm, is_finite, stopping = values.tolist()
            yield StepOutcome(step, loss, norm, bool(is_finite), stopping > 0, cell_losses, cell_index)
