"""Tells of a step whose loss or gradient was not finite: which cells, in which files."""

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

from mdsc.training.progress import RunProgress
from mdsc.training.step_outcomes import StepOutcome
from mdsc.training.tracking import Tracker

MOST_TOLD = 3
"""Cells that the console names; metrics.jsonl has all."""


class BadBatches:
    """`addresses(step, places)` says where the cells at these places of global batch `step` lie."""

    def __init__(
        self,
        accelerator: Accelerator,
        global_batch_size: int,
        addresses: Callable[[int, Sequence[int]], list[str]],
        progress: RunProgress,
        tracker: Tracker | None,
    ):
        self._accelerator = accelerator
        self._global_batch_size = global_batch_size
        self._addresses = addresses
        self._progress = progress
        self._tracker = tracker

    def tell(self, outcome: StepOutcome) -> str:
        """Tell of a bad step on the console and in metrics.jsonl. To be called on all processes; gives what was told.

        The cells are those whose own loss is not finite; all cells of the batch where only the gradient is not.
        """
        is_bad = torch.zeros(self._global_batch_size, dtype=torch.long, device=self._accelerator.device)
        is_bad[outcome.cell_index] = (~outcome.cell_losses.isfinite()).long()
        places = self._accelerator.reduce(is_bad, "sum").nonzero().flatten().tolist()
        cause = "loss" if places or not math.isfinite(outcome.loss) else "gradient"
        places = places or list(range(self._global_batch_size))
        where = self._addresses(outcome.step - 1, places)
        what = f"step {outcome.step}, cells {named_cells(places, where)} of its global batch"
        self._progress.say(f"warning: the {cause} is not finite, no weight is changed: {what}")
        if self._tracker is not None:
            facts = {"cause": cause, "cells": places, "addresses": where}
            self._tracker.event(outcome.step, "not_finite", facts)
        return what


def named_cells(places: Sequence[int], addresses: Sequence[str]) -> str:
    """The first MOST_TOLD cells, by their places in the global batch, and how many more there are."""
    told = ", ".join(f"{place} ({address})" for place, address in list(zip(places, addresses, strict=True))[:MOST_TOLD])
    return f"{told} and {len(places) - MOST_TOLD} more" if len(places) > MOST_TOLD else told
