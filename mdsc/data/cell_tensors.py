"""What sets of tensors with a row for each cell have in common: they are sent to devices, chosen from and cut."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

Cells = TypeVar("Cells", bound="CellTensors")


class CellTensors:
    """Base of dataclasses whose fields are tensors with cells as first axis, mappings of names to such, others of these
    dataclasses, or None."""

    def __len__(self) -> int:
        return len(self.cell_index)

    def to(self: Cells, device: torch.device | str, non_blocking: bool = False) -> Cells:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self: Cells) -> Cells:
        """A copy in page-locked memory; `to(device, non_blocking=True)` then does not make the host wait."""
        return self._map(lambda tensor: tensor.pin_memory())

    def select(self: Cells, rows: Tensor | slice) -> Cells:
        """The cells at `rows`: indices, a mask or a slice."""
        return self._map(lambda tensor: tensor[rows])

    def split(self: Cells, size: int) -> list[Cells]:
        """Consecutive cells, `size` at a time (the last part may have fewer)."""
        return [self.select(slice(start, start + size)) for start in range(0, len(self), size)]

    def _map(self: Cells, change: Callable[[Tensor], Tensor]) -> Cells:
        changed = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                changed[entry.name] = {name: change(tensor) for name, tensor in value.items()}
            elif isinstance(value, CellTensors):
                changed[entry.name] = value._map(change)
            elif value is not None:
                changed[entry.name] = change(value)
        return replace(self, **changed)
