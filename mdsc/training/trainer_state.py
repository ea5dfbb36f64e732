"""A trainer's state, taken to the host and put back: weights, averaged weights, moments, and the counters beside them.

There is no state of random generators: every draw of training is keyed by seed and step (`mdsc.diffusion.keyed_random`,
`mdsc.data.keyed_streams`), and the position in the data is the step.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from mdsc.checkpoint import WEIGHTS
from mdsc.training.sharding import give, whole
from mdsc.training.state_files import TENSORS, score_of

if TYPE_CHECKING:
    from mdsc.training.trainer import Trainer

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class HostCopy:
    """What is to be written, in the main process's host memory, which is kept from one time to the next."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.model: PreTrainedModel | None = None
        """With the averaged weights."""

    @torch.no_grad()
    def take(self, trainer: "Trainer") -> None:
        """Copy the state; the last copy is overwritten. The host waits for the device.

        To be called on all processes: what is sharded is put together on the devices, one tensor at a time.
        """
        device, keeps = trainer.device, trainer.accelerator.is_main_process
        if keeps and self.model is None:
            with torch.device("meta"):
                model = trainer.model_class(trainer.model.config)
            self.model = model.to_empty(device="cpu").eval().requires_grad_(False)
        averaged = self.model.state_dict() if keeps else {}
        for name in trainer.ema.names():
            value = trainer.ema.whole(name)
            if keeps:
                averaged[name].copy_(value)
        for name, tensor in training_tensors(trainer):
            value = whole(tensor)
            if not keeps:
                continue
            if name not in self.tensors:
                pinned = device.type == "cuda"
                self.tensors[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
            self.tensors[name].copy_(value, non_blocking=True)
        if keeps:
            for name, buffer in saved_buffers(trainer.model):
                averaged[name].copy_(buffer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that a checkpoint has."""
    kept = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def training_tensors(trainer: "Trainer") -> Iterator[tuple[str, Tensor]]:
    """Raw weights, buffers that a checkpoint leaves out, and moments, where a weight has had a gradient yet."""
    saved = dict(saved_buffers(trainer.model))
    for name, buffer in trainer.model.named_buffers():
        if name not in saved:
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
        "spikes": trainer.spikes.window.state(),
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
    if "spikes" in facts:  # a state of an older version has none
        trainer.spikes.window.restore(facts["spikes"])
    validation = facts["validation"]
    trainer.is_validation_due = validation["due"]
    last, best = validation["last"], validation["best"]
    trainer.last_validation = last and {"step": last["step"], "score": score_of(last)}
    trainer.best_validation = best and {"step": best["step"], "score": score_of(best)}

    sizes, model = facts["tensors"], trainer.model
    for name, size in sizes.items():
        if name.startswith("buffers."):
            _make_buffer(model, name.removeprefix("buffers."), size, trainer.device)
    parameters = dict(model.named_parameters())
    for name in sizes:
        moment, _, parameter = name.partition(".")
        if moment in MOMENTS:
            like = parameters[parameter]
            zeros = torch.zeros((), device=like.device) if moment == "step" else torch.zeros_like(like.detach())
            trainer.optimizer.state[like][moment] = zeros
    training = dict(training_tensors(trainer))
    for name, value in _read(training.keys(), folder and folder / TENSORS):
        give(training[name], value)
    buffers = dict(saved_buffers(model))
    for name, value in _read([*trainer.ema.names(), *buffers], folder and folder / WEIGHTS):
        give(buffers[name], value) if name in buffers else trainer.ema.give(name, value)


def _read(names: Collection[str], path: Path | None) -> Iterator[tuple[str, Tensor | None]]:
    """Each name with its tensor in the file of the main process, one at a time; with None, where there is no path."""
    if path is None:
        yield from ((name, None) for name in names)
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(names), "the files of a state were hashed together"
        for name in names:
            yield name, file.get_tensor(name)


def _make_buffer(model: nn.Module, name: str, size: list[int], device: torch.device) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, torch.zeros(size, device=device))
