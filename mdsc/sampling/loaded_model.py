"""A checkpoint made ready for the samplers, and how many cells it takes at once."""

from pathlib import Path

import torch
from torch import Tensor

from mdsc import __version__
from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.diffusion.evidence import Predict
from mdsc.errors import UserError

MAX_POSITIONS = {"cpu": 2**15, "cuda": 2**17}
"""Cells times genes of a forward pass: at width 256 the widest activation of 2**17 takes 512 MiB in float32. A CPU is
20% faster with fewer, which stay in its caches."""


def opened(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint of a folder, on a GPU if there is one; one that is loaded stays as and where it is."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    loaded = load_checkpoint(checkpoint)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def predictor(checkpoint: Checkpoint) -> Predict:
    """The model as the samplers call it, for cells without pads."""

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors) -> Tensor:
        # None spares attention its mask.
        return checkpoint.model(gene_ids, tokens, counts, None, dict(categories), dict(vectors)).logits

    return predict


def cells_per_pass(num_genes: int, batch_size: int | None, device: torch.device) -> int:
    """`batch_size`, or a number that suits the device."""
    if batch_size is None:
        return max(1, MAX_POSITIONS.get(device.type, MAX_POSITIONS["cpu"]) // num_genes)
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; it takes 1 or more.")
    return batch_size


def provenance(checkpoint: Checkpoint) -> dict:
    """What uns['mdsc'] tells of the model, in types that h5ad keeps."""
    return {
        "version": __version__,
        "checkpoint": str(checkpoint.model.name_or_path),
        "tokenizer": {"name": checkpoint.tokenizer.name, "num_tokens": checkpoint.tokenizer.num_tokens},
    }
