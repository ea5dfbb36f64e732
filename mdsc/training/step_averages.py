"""Averages of a run's numbers between two lines of metrics.jsonl, summed on the device so that no step waits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NAMES = ("loss", "nll", "ordinal", "grad_norm")


class StepAverages:
    """Means over the steps that were finite, and the speed."""

    def __init__(self, device: torch.device, cells_per_step: int):
        self._sums = torch.zeros(len(NAMES) + 1, dtype=torch.float64, device=device)
        self._cells_per_step = cells_per_step
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, values: Float[Tensor, " names"], is_finite: Bool[Tensor, ""]) -> None:
        """Add a step's values, in the order of NAMES."""
        with_count = torch.cat([values.double(), torch.ones_like(self._sums[:1])])
        self._sums += torch.where(is_finite, with_count, 0.0)
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Give the means since the last call (NaN without a finite step) and cells_per_second; begin anew."""
        *sums, number = self._sums.tolist()  # the host waits for the device here, so that the clock is right
        now = time.perf_counter()
        speed = self._steps * self._cells_per_step / max(now - self._since, 1e-9)
        self._sums.zero_()
        self._steps, self._since = 0, now
        means = {name: value / number if number else float("nan") for name, value in zip(NAMES, sums, strict=True)}
        return means | {"cells_per_second": speed}

    def state(self) -> dict[str, list[float] | int | float]:
        """What `restore` goes on from: sums, steps and seconds since the last `take`. The host waits."""
        return {
            "sums": self._sums.tolist(),
            "steps": self._steps,
            "seconds": time.perf_counter() - self._since,
        }

    def restore(self, state: dict[str, list[float] | int | float]) -> None:
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._steps, self._since = state["steps"], time.perf_counter() - state["seconds"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what the block takes (validation, saving) out of the speed."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
