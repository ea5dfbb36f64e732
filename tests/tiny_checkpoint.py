"""A checkpoint whose weights are random and large enough to matter, so that a leak or a wrong gene would show."""

from pathlib import Path

import numpy as np
import torch

from mdsc.checkpoint import Checkpoint, save_checkpoint
from mdsc.config.schema import DataConfig, TrainConfig
from mdsc.data.genes import GeneStatistics, GeneVocabulary
from mdsc.data.tokenizers import make_tokenizer
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel

DRUGS = ("DMSO_TF", "Imatinib", "Trametinib")


def tiny_checkpoint(
    symbols: list[str], ensembl_ids: list[str] | None = None, *, tokenizer: str = "rank", shards: Path | None = None
) -> Checkpoint:
    """Knows these genes, and the condition `drug`."""
    num_genes = len(symbols)
    tokenizer = make_tokenizer(tokenizer, 12)
    torch.manual_seed(0)
    model = MdscModel(
        MdscConfig(
            num_genes=num_genes,
            num_tokens=tokenizer.num_tokens,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            state_size=4,
            condition_levels={"drug": list(DRUGS)},
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.output_bias.weight[:, 0] += 2  # most counts are 0
    rate = np.full(num_genes, 0.5)
    return Checkpoint(
        model.eval(),
        tokenizer,
        GeneVocabulary.of(symbols, ensembl_ids),
        GeneStatistics(rate, rate, rate),
        None if shards is None else TrainConfig(data=DataConfig(dir=str(shards))),
    )


def save_tiny_checkpoint(folder: Path, *arguments, **options) -> Path:
    save_checkpoint(folder, tiny_checkpoint(*arguments, **options))
    return folder
