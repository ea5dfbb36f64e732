"""What a step keeps for its backward pass, and the most that it has alive; of real tensors or of fake ones."""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of all storages that `forward()` keeps for its backward pass, those of the model's weights left out.

    Of what is computed anew on the way back (gradient checkpointing), what it starts from counts alone.
    """
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            saved[_storage(tensor)] = tensor.untyped_storage()  # held, so that no later one takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


class LiveBytes(TorchDispatchMode):
    """A context manager: bytes of the storages that operators have made in it and that are alive, and their peak.

    What kernels take for themselves and give back is not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        """`known` tensors were there before, and do not count."""
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {_storage(tensor): 0 for tensor in known}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tree_map_only(Tensor, self._see, result)
        return result

    def _see(self, tensor: Tensor) -> Tensor:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)
        return tensor

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _storage(tensor: Tensor) -> int:
    """Tells storages apart while they are alive; fake ones have no address."""
    return tensor.untyped_storage()._cdata
