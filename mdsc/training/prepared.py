"""What a run needs of its data and model before the trainer takes over, for either head."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mdsc.data.cell_tensors import CellTensors
from mdsc.data.quarantine import Quarantined
from mdsc.training.task import Task


@dataclass(frozen=True, eq=False)
class Prepared:
    model: nn.Module
    task: Task
    batches: Callable[[int, torch.device], Iterator[CellTensors]]
    """batches(step, device): this process's share of the global batches from `step` on, without end."""
    addresses: Callable[[int, Sequence[int]], list[str]]
    """addresses(step, places): where these cells of a global batch lie."""
    quarantined: Callable[[], tuple[Quarantined, ...]]
    """The corrupt row groups that this process has replaced so far."""
