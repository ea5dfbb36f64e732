"""Exponential moving average of the weights: what is validated, saved and sampled from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mdsc.training.sharding import give, own_part, reshard, whole


class Ema:
    """One float32 tensor for each weight of a model, which follows it; of a sharded weight, for this process's part.

    The n-th update (from 0) moves by 1 - d with d = min(decay, (1 + n) / (10 + n)), so that the start is forgotten
    soon and short runs are averaged over a share of their length.
    """

    def __init__(self, model: nn.Module, decay: float, *, on_host: bool = False):
        """Start from the weights of `model`, which must be float32. `on_host` keeps the averages in host memory."""
        self._model = model
        self._trained = dict(model.named_parameters())
        self._parts = {name: own_part(parameter) for name, parameter in self._trained.items()}
        for name, part in self._parts.items():
            if part.dtype != torch.float32:
                raise ValueError(f"{name} is {part.dtype}: averages could not be exchanged with it bit for bit")
        self._sent: list[Tensor] | None = None
        """The newest weights, on their way to the host."""
        if on_host:
            self._sent = [_host_copy(part) for part in self._parts.values()]
        self._parts = {name: _host_copy(part) if on_host else part.clone() for name, part in self._parts.items()}
        self.decay = decay
        self.num_updates = 0
        self._is_applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's weights. If the averages are in host memory, the host waits for the device."""
        self._require_own_place()
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [own_part(parameter) for parameter in self._trained.values()]
        if self._sent is not None:
            torch._foreach_copy_(self._sent, weights, non_blocking=True)
            if weights[0].is_cuda:
                torch.cuda.synchronize(weights[0].device)
            weights = self._sent
        torch._foreach_lerp_(list(self._parts.values()), weights, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Within, the model has the averaged weights and is in evaluation mode; then all is as before, to the bit.

        The two change places, one weight at a time, so that no second copy is needed. Within, that is all there is.
        """
        self._require_own_place()
        was_training = self._model.training
        self._exchange()
        self._is_applied = True
        self._model.eval()
        try:
            yield self._model
        finally:
            self._exchange()
            self._is_applied = False
            self._model.train(was_training)

    def names(self) -> list[str]:
        return list(self._trained)

    def whole(self, name: str) -> Tensor:
        """An average, all of it. To be called on all processes."""
        self._require_own_place()
        return whole(self._trained[name], self._parts[name])

    def give(self, name: str, value: Tensor | None) -> None:
        """Set an average to what the main process gives. To be called on all processes."""
        self._require_own_place()
        give(self._trained[name], value, self._parts[name])

    def _require_own_place(self) -> None:
        """Else a state would be saved with averages for weights, and say nothing."""
        assert not self._is_applied, "averages are applied: the model has them, and they are the weights"

    @torch.no_grad()
    def _exchange(self) -> None:
        reshard(self._model)
        for name, parameter in self._trained.items():
            mine, theirs = self._parts[name], own_part(parameter)
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)


def _host_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, pin_memory=tensor.is_cuda).copy_(tensor)
