"""Steps whose loss or gradient stands out from those before them: told once, with the cells that had the worst loss."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mdsc.config.schema import OptimConfig, TrainConfig
from mdsc.training.bad_batches import named_cells
from mdsc.training.progress import RunProgress
from mdsc.training.step_outcomes import StepOutcome
from mdsc.training.tracking import Tracker

WINDOW = 128
"""Steps that a step is compared with."""
FEWEST = 32
"""With fewer steps nothing is said."""
FLOOR = 0.01
"""Least standard deviation: of a loss that hardly moves, a percent more is nothing to tell."""
WORST = 5
"""Cells that are told of a spike."""
TINY = 1e-30
SD_OF_NORMAL = 1.4826
"""Standard deviations over median absolute deviations, where a law is normal."""


def excess(log_value: float, logs: Sequence[float]) -> float:
    """How far the logarithm of a value is above the median of those before it, in standard deviations.

    A deviation is 1.4826 times the median absolute one, so that a spike among the values before does not hide the next,
    and FLOOR at least. Logarithms, because norms of gradients have a long tail: of 1,729 steps of configs/tiny.yaml on
    the demo's cells (batches of 16), 34 norms were more than 8 deviations up, and 3 in logarithms.
    """
    median = statistics.median(logs)
    deviation = SD_OF_NORMAL * statistics.median([abs(one - median) for one in logs])
    return (log_value - median) / max(deviation, FLOOR)


class SpikeWindow:
    """The last finite steps. The warm-up of a phase is left out, and a second phase begins anew."""

    def __init__(self, threshold: float, train: OptimConfig):
        """threshold: standard deviations; 0 finds nothing."""
        self.count = 0
        self._threshold = threshold
        self._train = train
        self._logs = {name: deque(maxlen=WINDOW) for name in ("loss", "grad_norm")}

    def add(self, step: int, loss: float, grad_norm: float) -> dict[str, Any] | None:
        """Add finite step number `step` (1, 2, ...); what stands out in it, or None. A spike is a later step's past."""
        if not self._threshold:
            return None
        values, found = {"loss": loss, "grad_norm": grad_norm}, None
        logs = {name: math.log(max(value, TINY)) for name, value in values.items()}
        begin = self._train.pathway_steps if self._train.pathway_steps < step else 0
        if step - begin <= max(self._train.warmup_steps, 1):
            for recent in self._logs.values():
                recent.clear()
            return None
        if len(self._logs["loss"]) >= FEWEST:
            far = {name: excess(logs[name], recent) for name, recent in self._logs.items()}
            if max(far.values()) > self._threshold:
                medians = {f"median_{name}": math.exp(statistics.median(recent)) for name, recent in self._logs.items()}
                cause = "loss" if far["loss"] > self._threshold else "grad_norm"
                found = {"cause": cause, **values, **medians}
                self.count += 1
        for name, recent in self._logs.items():
            recent.append(logs[name])
        return found

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from, for JSON."""
        return {"count": self.count, **{name: list(recent) for name, recent in self._logs.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for name, recent in self._logs.items():
            recent.extend(state[name])


class LossSpikes:
    """Hears of every step, at the same time on all processes, whose numbers are the same: so they agree on a spike."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        addresses: Callable[[int, Sequence[int]], list[str]],
        progress: RunProgress,
        tracker: Tracker | None,
    ):
        """`addresses(step, places)` says where the cells at these places of global batch `step` lie."""
        self.window = SpikeWindow(config.tracking.spike_threshold, config.train)
        self._global_batch_size = config.train.global_batch_size
        self._accelerator = accelerator
        self._addresses = addresses
        self._progress = progress
        self._tracker = tracker

    def heard(self, outcome: StepOutcome) -> None:
        """Tell of a finite step that stands out: in metrics.jsonl, of a loss also on the console. For all processes."""
        if not outcome.is_finite:
            return
        found = self.window.add(outcome.step, outcome.loss, outcome.gradient_norm)
        if found is None:
            return
        losses = torch.zeros(self._global_batch_size, dtype=torch.float32, device=self._accelerator.device)
        losses[outcome.cell_index] = outcome.cell_losses.float()
        worst = self._accelerator.reduce(losses, "sum").sort(descending=True, stable=True)
        places, losses = (part[:WORST].tolist() for part in (worst.indices, worst.values))
        where = self._addresses(outcome.step - 1, places)
        if found["cause"] == "loss":  # gradients of small batches stand out every few hundred steps
            self._progress.say(
                f"warning: the loss stands out: {found['loss']:.4g} at step {outcome.step}, where "
                f"{found['median_loss']:.4g} was usual; the worst had cells {named_cells(places, where)}"
            )
        if self._tracker is not None:
            facts = found | {"cells": places, "cell_losses": losses, "addresses": where}
            self._tracker.event(outcome.step, "loss_spike", facts)
