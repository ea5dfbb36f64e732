"""What a model may know of a cell: its visible counts and nothing that was computed from the hidden ones.

Training, validation and sampling all reach the network through `Evidence.predict`: counts are hidden first, in count
space; then what is left is tokenised as if it were the whole cell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer

Predict = Callable[..., Tensor]
"""predict(gene_ids, tokens, counts, is_pad, categories, vectors) -> logits (batch, genes, V): a model, or a test's
exact conditionals. tokens: the mask token where a position is hidden, the pad token at pads; counts: 0 at both."""


@dataclass(frozen=True)
class Evidence:
    """Cells of which some counts are visible, and the others unknown."""

    gene_ids: Int[Tensor, "batch genes"]
    """Index into the vocabulary; 0 at pads."""
    counts: Int[Tensor, "batch genes"]
    """Raw counts where visible, else 0."""
    visible: Bool[Tensor, "batch genes"]
    """Never true at a pad."""
    is_pad: Bool[Tensor, "batch genes"]
    cell_index: Int[Tensor, "batch"]
    """Keys what is random per cell."""
    categories: Mapping[str, Int[Tensor, "batch"]] = field(default_factory=dict)
    """Categorical conditions: 0 = unknown."""
    vectors: Mapping[str, Float[Tensor, "batch _"]] = field(default_factory=dict)
    """Vector conditions."""

    def __len__(self) -> int:
        return len(self.cell_index)

    @property
    def hidden(self) -> Bool[Tensor, "batch genes"]:
        """Real positions that are not visible."""
        return ~(self.visible | self.is_pad)

    def predict(self, predict: Predict, tokenizer: Tokenizer) -> Float[Tensor, "batch genes V"]:
        """The model's logits over each position's data tokens."""
        tokens = tokenizer.encode_visible(self.counts, self.visible)
        tokens = tokens.masked_fill(self.is_pad, tokenizer.pad_token)
        return predict(self.gene_ids, tokens, self.counts, self.is_pad, self.categories, self.vectors)

    def to(self, device: torch.device | str) -> "Evidence":
        return self._map(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list["Evidence"]:
        """Consecutive cells, `size` at a time; the last part may be smaller."""
        return [self._map(lambda tensor, i=i: tensor[i : i + size]) for i in range(0, len(self), size)]

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Evidence":
        changed = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                changed[entry.name] = {name: change(tensor) for name, tensor in value.items()}
            else:
                changed[entry.name] = change(value)
        return Evidence(**changed)


def hide(cells: CellBatch, hidden: Bool[Tensor, "batch genes"]) -> Evidence:
    """What is left of whole cells once the counts at `hidden` are unknown."""
    visible = ~(hidden | cells.is_pad)
    return Evidence(
        gene_ids=cells.gene_ids,
        counts=cells.counts * visible,
        visible=visible,
        is_pad=cells.is_pad,
        cell_index=cells.cell_index,
        categories=cells.categories,
        vectors=cells.vectors,
    )
