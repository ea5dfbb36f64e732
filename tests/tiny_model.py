"""A small network with every weight drawn at random, also those that start at zero: else the DiT would be invisible."""

import torch
from torch import Tensor

from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel

NUM_GENES, NUM_TOKENS = 40, 7
CONDITIONS = {"condition_levels": {"drug": ["a", "b"]}, "vector_sizes": {"text": 5}}


def tiny_config(**changes) -> MdscConfig:
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "state_size": 6, "factor_size": 3}
    return MdscConfig(num_genes=NUM_GENES, num_tokens=NUM_TOKENS, **(sizes | changes))


def tiny_model(*, seed: int = 0, **changes) -> MdscModel:
    """In evaluation mode."""
    model = MdscModel(tiny_config(**changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.cell_state.mean_count.copy_(torch.rand(NUM_GENES, generator=generator) + 0.1)
        if model.config.factor_size:
            for table in (name for name, _ in model.gene_evidence.named_buffers() if not name.startswith("fold_")):
                buffer = getattr(model.gene_evidence, table)
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.2)
    return model


def tiny_cells(*, seed: int = 0, batch: int = 3, genes: int = 20) -> dict[str, Tensor]:
    """Arguments of the model: half of the genes visible, except that the last cell is all hidden."""
    generator = torch.Generator().manual_seed(seed)
    gene_ids = torch.stack([torch.randperm(NUM_GENES, generator=generator)[:genes] for _ in range(batch)])
    tokens = torch.randint(NUM_TOKENS, (batch, genes), generator=generator)
    hidden = torch.rand(batch, genes, generator=generator) < 0.5
    hidden[-1] = True
    counts = torch.where(hidden, 0, tokens * (tokens + 1) // 2)
    is_pad = torch.zeros(batch, genes, dtype=torch.bool)
    tokens = tokens.masked_fill(hidden, NUM_TOKENS)
    return {"gene_ids": gene_ids, "tokens": tokens, "counts": counts, "is_pad": is_pad}
