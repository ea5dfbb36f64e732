"""What a run trains a model on: losses and validation. All the rest of the trainer is the same for every task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

from torch import Tensor, nn

from mdsc.data.cell_tensors import CellTensors
from mdsc.data.tokenizers import Tokenizer
from mdsc.training.plots import Curves


class Task(ABC):
    """Losses of a model on batches, and its scores on validation cells.

    What is random in a loss is keyed by seed, step and a cell's place in the global batch, so that no share of the
    batch and no micro-batch changes it.
    """

    terms: tuple[str, ...]
    """What `losses` gives and metrics.jsonl shows; "loss" comes first."""
    score: str
    """Of what `validate` gives, the number by which states are compared; the lower, the better."""
    curves: Curves
    """What the picture of the run shows."""
    uses_bf16: bool = False
    """Whether the model computes under bf16 autocast."""
    least_cells: int = 2
    """That losses can be taken of."""
    tokenizer: Tokenizer | None = None
    """What makes tokens of counts, where the model reads tokens."""

    @abstractmethod
    def losses(self, model: nn.Module, step: int, cells: CellTensors) -> dict[str, Tensor]:
        """`terms` of each cell, (batch,); those of a step are their means over its global batch.

        model: perhaps wrapped for several processes. cells: a micro-batch.
        """

    @abstractmethod
    def validate(
        self,
        model: nn.Module,
        done: int,
        *,
        batch_size: int,
        sum_over_processes: Callable[[Tensor], Tensor],
        wants_stop: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Scores by their names in metrics.jsonl, each beginning with `validation_`, the same on all processes.

        None if `wants_stop()` was true on any process before it was through. model: with the averaged weights.
        """

    def receive(self, batch: CellTensors) -> None:
        """Look at a batch that is still on the host, before it is trained on."""
        return  # most have nothing to look for

    def phase(self, step: int) -> Hashable:
        """Equal for steps whose losses depend on the same weights."""
        return None

    def flops(self, step: int, batch: CellTensors) -> int:
        """Floating-point operations of training on one cell, as far as they are counted; 0: not."""
        return 0
