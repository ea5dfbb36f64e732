"""Averages of a run's numbers between two lines of metrics.jsonl, summed on the device so that no step waits."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CLOCKED = frozenset({"cells_per_second", "model_flops_per_second", "mfu"})
"""What a clock has measured. `model_flops_per_second` is the arithmetic that the trunk's matrices and attention take
(`mdsc.model.trunk_size.training_flops`; none while the pathway is trained alone), pads included where cells have some;
`mfu` is that over the peak of a matrix product on the run's own GPUs."""


class StepAverages:
    """Means over the steps that were finite, and the speed."""

    def __init__(
        self, names: Sequence[str], device: torch.device, cells_per_step: int, peak_flops: float | None = None
    ):
        """`names`: of the values of a step. `peak_flops`: floating-point operations a second that all devices of the
        run could do, where it is known."""
        self._names = tuple(names)
        self._sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self._cells_per_step = cells_per_step
        self._peak_flops = peak_flops
        self._steps = self._flops = 0
        self._since = time.perf_counter()

    def add(self, values: Float[Tensor, " names"], is_finite: Bool[Tensor, ""], flops: int = 0) -> None:
        """Add a step's values, in the order of the names, and its floating-point operations on all devices together."""
        with_count = torch.cat([values.double(), torch.ones_like(self._sums[:1])])
        self._sums += torch.where(is_finite, with_count, 0.0)
        self._steps += 1
        self._flops += flops

    def take(self) -> dict[str, float]:
        """Give the means since the last call (NaN without a finite step) and the speeds (CLOCKED); begin anew."""
        *sums, number = self._sums.tolist()  # the host waits for the device here, so that the clock is right
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        means = {
            name: value / number if number else float("nan") for name, value in zip(self._names, sums, strict=True)
        }
        speeds = {
            "cells_per_second": self._steps * self._cells_per_step / seconds,
            "model_flops_per_second": self._flops / seconds,
        }
        if self._peak_flops is not None:
            speeds["mfu"] = speeds["model_flops_per_second"] / self._peak_flops
        self._sums.zero_()
        self._steps, self._flops, self._since = 0, 0, now
        return means | speeds

    def state(self) -> dict[str, list[float] | int | float]:
        """What `restore` goes on from: sums, steps and seconds since the last `take`. The host waits."""
        return {
            "sums": self._sums.tolist(),
            "steps": self._steps,
            "flops": self._flops,
            "seconds": time.perf_counter() - self._since,
        }

    def restore(self, state: dict[str, list[float] | int | float]) -> None:
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._steps, self._flops = state["steps"], state.get("flops", 0)
        self._since = time.perf_counter() - state["seconds"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what the block takes (validation, saving) out of the speed."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
