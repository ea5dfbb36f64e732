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
from mdsc.diffusion.corruption import Corruption, corrupt
from mdsc.diffusion.evidence import hide
from mdsc.diffusion.losses import objective
from mdsc.model.attention import attending
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.model.trunk_block import compile_blocks, recompute_blocks
from mdsc.model.trunk_size import trunk_parameters
from mdsc.training.optimizer import make_optimizer

SEED = 0
REFERENCE = "reference DiT (MDLM)"
UNROTATED = "reference, no rotary positions"
REFERENCES = (REFERENCE, UNROTATED)
TRUNK = "mdsc, bare trunk"
HEAD = "mdsc, bare trunk, head where hidden"
MODEL = "mdsc, whole model"
STEP = "mdsc, whole step"
WHAT = {
    REFERENCE: "layer, SUBS head and loss of MDLM",
    UNROTATED: "positions mean nothing for genes; ours has none either",
    TRUNK: "our embeddings, blocks and head; the reference's loss",
    HEAD: "the same, but logits and loss of half of the genes alone",
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


def make_variant(
    name: str,
    shape: Shape,
    device: torch.device,
    *,
    attention: str = "sdpa",
    bf16: bool = False,
    mode: str = "eager",
) -> Variant:
    """A fresh model on the device, in training mode. The reference has torch's own attention, whatever `attention`.

    mode: "eager"; "compiled", network and loss each as a whole; "blocks", each block by itself and the rest eager, as
    by --train.compile; "recomputed", our blocks anew in the backward pass, as by --train.gradient-checkpointing.
    """
    cells = simulated_batch(shape, device)
    tokenizer = make_tokenizer("rank")
    corruption = corrupted(cells)
    tokens = cells.tokens.masked_fill(corruption.hidden, tokenizer.mask_token)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    ready = torch.compile if mode == "compiled" else lambda function: function
    torch.manual_seed(SEED)
    with torch.device(device):
        if name in REFERENCES:
            model = ReferenceDit(
                shape.vocabulary,
                tokenizer.num_tokens,
                shape.width,
                shape.layers,
                shape.heads,
                rotary=name == REFERENCE,
            )
        else:
            model = mdsc_model(shape, tokenizer.num_tokens, attention)
    trunk = trunk_parameters(model.blocks)
    if mode == "blocks":
        compile_blocks(model)
    if mode == "recomputed":
        recompute_blocks(model)
    if name in (*REFERENCES, TRUNK, HEAD):
        if name not in REFERENCES:
            hidden_first = corruption.hidden.int().argsort(dim=1, descending=True)
            model = BareTrunk(model, hidden_first[:, : shape.genes // 2] if name == HEAD else None)
        plain_loss = ready(model.loss)

        def loss() -> Tensor:
            with autocast:
                return plain_loss(cells.gene_ids, tokens, cells.tokens, corruption.weight.float())

        return Variant(name, model, loss, trunk)

    values = torch.tensor(tokenizer.values, dtype=torch.float32, device=device)
    evidence = hide(cells, corruption.hidden)
    predict, score = ready(lambda *inputs: model(*inputs).logits), ready(objective)

    def network(gene_ids: Tensor, tokens: Tensor, counts: Tensor, is_pad: Tensor, *_) -> Tensor:
        with autocast:
            return predict(gene_ids, tokens, counts, None)

    def whole_loss() -> Tensor:
        if name == STEP:
            drawn = corrupted(cells)
            logits = hide(cells, drawn.hidden).predict(network, tokenizer)
        else:
            drawn = corruption
            logits = network(evidence.gene_ids, tokens, evidence.counts, evidence.is_pad)
        scores = score(logits, cells.tokens, drawn.hidden, drawn.weight, cells.is_pad, values, ObjectiveConfig())
        return scores["loss"].mean()

    return Variant(name, model.train(), whole_loss, trunk)


def corrupted(cells: CellBatch) -> Corruption:
    return corrupt(cells.is_pad, cells.cell_index, global_batch_size=len(cells), seed=SEED, step=0)


def mdsc_model(shape: Shape, num_tokens: int, attention: str) -> MdscModel:
    return MdscModel(
        MdscConfig(
            num_genes=shape.vocabulary,
            num_tokens=num_tokens,
            hidden_size=shape.width,
            num_layers=shape.layers,
            num_heads=shape.heads,
            state_size=shape.state,
            attn_implementation=attention,
        )
    )


class BareTrunk(nn.Module):
    """The parts of an `MdscModel` that the reference has too: embeddings, blocks with a condition a cell, and head."""

    def __init__(self, model: MdscModel, where: Tensor | None = None):
        """`where`: (cells, some) genes that the head is for; None: all of them."""
        super().__init__()
        self.where = where
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
        if self.where is not None:
            x = x.gather(1, self.where[..., None].expand(-1, -1, x.shape[-1]))
        return self.final(x, condition)

    def loss(self, gene_ids: Tensor, tokens: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """As `ReferenceDit.loss`, from a head that has no mask to leave out."""
        log_p = self(gene_ids, tokens).log_softmax(dim=-1)
        if self.where is not None:
            targets, tokens = targets.gather(1, self.where), tokens.gather(1, self.where)
        nll = -log_p.gather(-1, targets[..., None])[..., 0]
        return (nll * (tokens == self.config.mask_token) * weight[:, None]).mean()
