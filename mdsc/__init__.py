"""mdsc: a masked discrete-diffusion foundation model of single-cell gene expression.

    import mdsc
    filled = mdsc.inpaint_anndata("runs/demo", adata, mask_ratio=0.8)

What is named here is imported when it is first asked for, so that `mdsc --help` needs no torch. Once this package is
imported, transformers' AutoConfig and AutoModel know the model, whether they were imported before or are later.
"""

import importlib
from typing import TYPE_CHECKING

from mdsc.auto_classes import register_when_imported

if TYPE_CHECKING:
    from mdsc.checkpoint import load_checkpoint
    from mdsc.model.configuration import MdscConfig
    from mdsc.model.initialisation import build_model
    from mdsc.model.modeling import MdscModel
    from mdsc.sampling.anndata_embedding import MdscEmbedder, embed_anndata, gene_embeddings
    from mdsc.sampling.anndata_generation import generate_anndata
    from mdsc.sampling.anndata_inpainting import inpaint_anndata
    from mdsc.sampling.anndata_likelihood import likelihood_anndata
    from mdsc.sampling.anndata_prediction import predict_perturbations

__version__ = "0.1.0"
__all__ = [
    "MdscConfig",
    "MdscEmbedder",
    "MdscModel",
    "__version__",
    "build_model",
    "embed_anndata",
    "gene_embeddings",
    "generate_anndata",
    "inpaint_anndata",
    "likelihood_anndata",
    "load_checkpoint",
    "predict_perturbations",
]

_HOMES = {
    "MdscConfig": "mdsc.model.configuration",
    "MdscEmbedder": "mdsc.sampling.anndata_embedding",
    "MdscModel": "mdsc.model.modeling",
    "build_model": "mdsc.model.initialisation",
    "embed_anndata": "mdsc.sampling.anndata_embedding",
    "gene_embeddings": "mdsc.sampling.anndata_embedding",
    "generate_anndata": "mdsc.sampling.anndata_generation",
    "inpaint_anndata": "mdsc.sampling.anndata_inpainting",
    "likelihood_anndata": "mdsc.sampling.anndata_likelihood",
    "load_checkpoint": "mdsc.checkpoint",
    "predict_perturbations": "mdsc.sampling.anndata_prediction",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mdsc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


register_when_imported()
