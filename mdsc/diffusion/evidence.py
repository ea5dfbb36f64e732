"""What a model may know of a cell: its visible counts and nothing that was computed from the hidden ones.

Training, validation and sampling all reach the network through `Evidence.predict`: counts are hidden first, in count
space; then what is left is tokenised as if it were the whole cell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.cell_tensors import CellTensors
from mdsc.data.tokenizers import Tokenizer

Predict = Callable[..., Tensor]
"""predict(gene_ids, tokens, counts, is_pad, categories, vectors) -> logits (batch, genes, V): a model, or a test's
exact conditionals. tokens: the mask token where a position is hidden, the pad token at pads; counts: 0 at both. Given
`seen_under=` beside these where there is one, and only there."""


@dataclass(frozen=True)
class SeenUnder(CellTensors):
    """Counts that were seen under other conditions than those that are asked for: of a control cell, of which the rest
    is to be filled in as under a drug."""

    positions: Bool[Tensor, "batch genes"]
    """Which, where they are visible. What is drawn beside them is of the conditions that are asked for."""
    categories: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    vectors: Mapping[str, Float[Tensor, "batch _"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence(CellTensors):
    """Cells of which some counts are visible, and the others unknown."""

    gene_ids: Int[Tensor, "batch genes"]
    """Index into the vocabulary; 0 at pads."""
    counts: Int[Tensor, "batch genes"]
    """Raw counts where visible, else 0."""
    visible: Bool[Tensor, "batch genes"]
    """Never true at a pad."""
    is_pad: Bool[Tensor, "batch genes"]
    cell_index: Int[Tensor, " batch"]
    """Keys what is random per cell."""
    categories: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    """Categorical conditions: 0 = unknown."""
    vectors: Mapping[str, Float[Tensor, "batch _"]] = field(default_factory=dict)
    """Vector conditions."""
    seen_under: SeenUnder | None = None
    """None: all that is visible was seen under these conditions."""

    @property
    def hidden(self) -> Bool[Tensor, "batch genes"]:
        """Real positions that are not visible."""
        return ~(self.visible | self.is_pad)

    def predict(self, predict: Predict, tokenizer: Tokenizer) -> Float[Tensor, "batch genes V"]:
        """The model's logits over each position's data tokens."""
        tokens = tokenizer.encode_visible(self.counts, self.visible)
        tokens = tokens.masked_fill(self.is_pad, tokenizer.pad_token)
        others = {} if self.seen_under is None else {"seen_under": self.seen_under}
        return predict(self.gene_ids, tokens, self.counts, self.is_pad, self.categories, self.vectors, **others)


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
