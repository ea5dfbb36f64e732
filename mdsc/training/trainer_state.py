"""A trainer's state, taken to the host and put back: weights, averaged weights, moments, and the counters beside them.

There is no state of random generators: every draw of training is keyed by seed and step (`mdsc.diffusion.keyed_random`,
`mdsc.data.keyed_streams`), and the position in the data is the step.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast
from safetensors import safe_open
from torch import Tensor, nn

from mdsc.checkpoint import WEIGHTS
from mdsc.training.state_files import TENSORS

if TYPE_CHECKING:
    from mdsc.training.trainer import Trainer

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class HostCopy:
    """What is to be written, in the host's memory, which is kept from one time to the next."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.ema: nn.Module | None = None

    def take(self, trainer: "Trainer") -> None:
        """Copy the state; the last copy is overwritten. The host waits for the device."""
        device = trainer.device
        if self.ema is None:
            self.ema = copy.deepcopy(trainer.ema.model).to("cpu")
        for mine, theirs in zip(_tensors(self.ema), _tensors(trainer.ema.model), strict=True):
            mine.copy_(theirs)
        for name, tensor in training_tensors(trainer):
            if name not in self.tensors:
                pinned = device.type == "cuda"
                self.tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self.tensors[name].copy_(tensor.detach(), non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def training_tensors(trainer: "Trainer") -> Iterator[tuple[str, Tensor]]:
    """Raw weights, buffers that a checkpoint leaves out, and moments, where a weight has had a gradient yet."""
    kept = trainer.model.state_dict().keys()
    for name, buffer in trainer.model.named_buffers():
        if name not in kept:
            yield f"buffers.{name}", buffer
    for name, parameter in trainer.model.named_parameters():
        yield f"weights.{name}", parameter
        moments = trainer.optimizer.state.get(parameter, {})
        for moment in MOMENTS:
            if moment in moments:
                yield f"{moment}.{name}", moments[moment]


def facts_of(trainer: "Trainer") -> dict[str, Any]:
    """The rest of the state, for state.json. The host waits for the device."""
    sizes = {name: list(tensor.shape) for name, tensor in training_tensors(trainer)}
    return {
        "tensors": sizes,
        "ema_updates": trainer.ema.num_updates,
        "averages": trainer.averages.state(),
        "guard": {"skipped": trainer.guard.skipped, "in_a_row": trainer.guard.in_a_row},
        "validation": {
            "due": trainer.is_validation_due,
            "last": trainer.last_validation,
            "best": trainer.best_validation,
        },
    }


@torch.no_grad()
def restore(trainer: "Trainer", facts: dict[str, Any], folder: Path | None) -> None:
    """Put a state into a new trainer. `folder` is the main process's; the others are sent what it holds."""
    trainer.done = facts["step"]
    trainer.ema.num_updates = facts["ema_updates"]
    trainer.averages.restore(facts["averages"])
    trainer.guard.skipped, trainer.guard.in_a_row = facts["guard"]["skipped"], facts["guard"]["in_a_row"]
    validation = facts["validation"]
    trainer.is_validation_due = validation["due"]
    trainer.last_validation, trainer.best_validation = validation["last"], validation["best"]

    sizes = facts["tensors"]
    for model in (trainer.model, trainer.ema.model):
        for name in sizes:
            if name.startswith("buffers."):
                _make_buffer(model, name.removeprefix("buffers."), sizes[name], trainer.device)
    parameters = dict(trainer.model.named_parameters())
    for name, size in sizes.items():
        moment, _, parameter = name.partition(".")
        if moment in MOMENTS:
            like = parameters[parameter]
            trainer.optimizer.state[like][moment] = torch.zeros(size, dtype=torch.float32, device=like.device)
    _fill(dict(training_tensors(trainer)), folder and folder / TENSORS)
    _fill(trainer.ema.model.state_dict(), folder and folder / WEIGHTS)
    for name, buffer in trainer.model.named_buffers():
        averaged_one = trainer.ema.model.get_buffer(name)
        if f"buffers.{name}" in sizes:
            averaged_one.copy_(buffer)
        else:
            buffer.copy_(averaged_one)


def _fill(tensors: dict[str, Tensor], path: Path | None) -> None:
    """Read the tensors on the main process, one at a time, and send each to the others."""
    if path is None:
        for tensor in tensors.values():
            broadcast(tensor.data)
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == tensors.keys(), "the files of a state were hashed together"
        for name, tensor in tensors.items():
            tensor.data.copy_(file.get_tensor(name))
            broadcast(tensor.data)


def _make_buffer(model: nn.Module, name: str, size: list[int], device: torch.device) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, torch.zeros(size, device=device))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
