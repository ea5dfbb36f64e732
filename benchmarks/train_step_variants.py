"""What `train_step.py` times: the reference DiT, and of our model the trunk alone, the model, and the whole step.

All have equal width, depth, genes and cells, and see the same simulated cells with the same counts hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from reference_dit import ReferenceDit
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.config.schema import ObjectiveConfig, OptimConfig
from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.corruption import corrupt
from mdsc.diffusion.evidence import hide
from mdsc.diffusion.losses import objective
from mdsc.model import MdscConfig, MdscModel
from mdsc.model.attention import attending
from mdsc.model.trunk_size import trunk_parameters
from mdsc.training.optimizer import make_optimizer

SEED = 0
REFERENCE = "reference DiT (MDLM)"
TRUNK = "mdsc, bare trunk"
MODEL = "mdsc, whole model"
STEP = "mdsc, whole step"
WHAT = {
    REFERENCE: "layer, SUBS head and loss of MDLM",
    TRUNK: "our embeddings, blocks and head; the reference's loss",
    MODEL: "with cell state, gene evidence and mean matching",
    STEP: "counts hidden and tokenised on the device too, as in training",
}


@dataclass(frozen=True)
class Shape:
    """Of a model and of a batch."""

    width: int
    layers: int
    heads: int
    state: int
    genes: int
    cells: int
    vocabulary: int


@dataclass(frozen=True)
class Variant:
    """Something that can be trained: `loss()` gives a scalar of the next step's cells."""

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]
    trunk: int
    """Parameters of its blocks without modulation."""

    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, OptimConfig())


def simulated_batch(shape: Shape, device: torch.device) -> CellBatch:
    """Counts with a tenth or so above zero; one set of genes for all cells, as the loader draws them."""
    generator = torch.Generator().manual_seed(SEED)
    rate = torch.empty(shape.cells, shape.genes).exponential_(generator=generator) ** 3 * 0.3
    counts = torch.poisson(rate, generator=generator).int()
    tokenizer = make_tokenizer("rank")
    batch = CellBatch(
        gene_ids=torch.randperm(shape.vocabulary, generator=generator)[: shape.genes].repeat(shape.cells, 1),
        counts=counts,
        tokens=tokenizer.encode_visible(counts, torch.ones_like(counts, dtype=torch.bool)),
        is_pad=torch.zeros(counts.shape, dtype=torch.bool),
        cell_index=torch.arange(shape.cells),
        fold=torch.zeros(shape.cells, dtype=torch.long),
    )
    return batch.to(device)


def make_variants(
    shape: Shape, device: torch.device, *, attention: str = "sdpa", bf16: bool = False, compiled: bool = False
) -> dict[str, Variant]:
    """Fresh models on the device, in training mode. The reference has torch's own attention, whatever `attention`."""
    tokenizer = make_tokenizer("rank")
    cells = simulated_batch(shape, device)
    values = torch.tensor(tokenizer.values, dtype=torch.float32, device=device)
    corruption = corrupt(cells.is_pad, cells.cell_index, global_batch_size=shape.cells, seed=SEED, step=0)
    tokens = cells.tokens.masked_fill(corruption.hidden, tokenizer.mask_token)
    counts = cells.counts * ~corruption.hidden
    weight = corruption.weight.float()

    torch.manual_seed(SEED)
    with torch.device(device):
        reference = ReferenceDit(shape.vocabulary, tokenizer.num_tokens, shape.width, shape.layers, shape.heads)
        model = MdscModel(
            MdscConfig(
                num_genes=shape.vocabulary,
                num_tokens=tokenizer.num_tokens,
                hidden_size=shape.width,
                num_layers=shape.layers,
                num_heads=shape.heads,
                state_size=shape.state,
                attn_implementation=attention,
            )
        )
    trunk = BareTrunk(model)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    ready = torch.compile if compiled else lambda module: module
    reference_loss, trunk_loss = ready(reference.loss), ready(trunk.loss)
    predict = ready(lambda *arguments: model.train()(*arguments).logits)
    score = ready(objective)

    def of_reference() -> Tensor:
        with autocast:
            return reference_loss(cells.gene_ids, tokens, cells.tokens, weight)

    def of_trunk() -> Tensor:
        with autocast:
            return trunk_loss(cells.gene_ids, tokens, cells.tokens, weight)

    def of_model() -> Tensor:
        with autocast:
            logits = predict(cells.gene_ids, tokens, counts, None)
        return scored(logits, corruption)

    def of_step() -> Tensor:
        drawn = corrupt(cells.is_pad, cells.cell_index, global_batch_size=shape.cells, seed=SEED, step=0)

        def network(gene_ids, tokens, counts, is_pad, *_) -> Tensor:
            with autocast:
                return predict(gene_ids, tokens, counts, None)

        return scored(hide(cells, drawn.hidden).predict(network, tokenizer), drawn)

    def scored(logits: Tensor, drawn) -> Tensor:
        hidden, options = drawn.hidden, ObjectiveConfig()
        return score(logits, cells.tokens, hidden, drawn.weight, cells.is_pad, values, options)["loss"].mean()

    found = [
        Variant(REFERENCE, reference, of_reference, trunk_parameters(reference.blocks)),
        Variant(TRUNK, trunk, of_trunk, trunk_parameters(model.blocks)),
        Variant(MODEL, model, of_model, trunk_parameters(model.blocks)),
        Variant(STEP, model, of_step, trunk_parameters(model.blocks)),
    ]
    return {variant.name: variant for variant in found}


class BareTrunk(nn.Module):
    """The parts of an `MdscModel` that the reference has too: embeddings, blocks with a condition a cell, and head."""

    def __init__(self, model: MdscModel):
        super().__init__()
        self.config = model.config
        self.gene_embedding, self.token_embedding = model.gene_embedding, model.token_embedding
        self.blocks, self.final = model.blocks, model.final
        self.condition = nn.Parameter(torch.randn(model.config.hidden_size, device=model.device))

    def forward(self, gene_ids: Tensor, tokens: Tensor) -> Tensor:
        x = self.gene_embedding(gene_ids) + self.token_embedding(tokens)
        condition = F.silu(self.condition).expand(len(tokens), -1)
        how = attending(self.config._attn_implementation, x, None)
        for block in self.blocks:
            x = block(x, condition, how)
        return self.final(x, condition)

    def loss(self, gene_ids: Tensor, tokens: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """As `ReferenceDit.loss`, from a head that has no mask to leave out."""
        log_p = self(gene_ids, tokens).log_softmax(dim=-1)
        nll = -log_p.gather(-1, targets[..., None])[..., 0]
        return (nll * (tokens == self.config.mask_token) * weight[:, None]).mean()
