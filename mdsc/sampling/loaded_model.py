"""A checkpoint made ready for the samplers."""

from pathlib import Path

import torch
from torch import Tensor

from mdsc import __version__
from mdsc.checkpoint import Checkpoint, load_masked
from mdsc.diffusion.evidence import Predict


def opened(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint of a masked model's folder, on a GPU if there is one; one that is loaded stays as it is."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    loaded = load_masked(checkpoint)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def predictor(checkpoint: Checkpoint, genes_per_pass: int | None = None) -> Predict:
    """The model as the samplers call it, for cells without pads. genes_per_pass: see `MdscModel.forward`."""

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors, **others) -> Tensor:
        # None spares attention its mask.
        return checkpoint.model(
            gene_ids, tokens, counts, None, dict(categories), dict(vectors), genes_per_pass=genes_per_pass, **others
        ).logits

    return predict


def provenance(checkpoint: Checkpoint) -> dict:
    """What uns['mdsc'] tells of the model, in types that h5ad keeps."""
    return {
        "version": __version__,
        "checkpoint": str(checkpoint.model.name_or_path),
        "tokenizer": {"name": checkpoint.tokenizer.name, "num_tokens": checkpoint.tokenizer.num_tokens},
    }
