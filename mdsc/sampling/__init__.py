"""Filling hidden counts and generating cells with a trained model.

from mdsc.sampling import generate_anndata, inpaint_anndata

filled = inpaint_anndata("runs/a", adata, mask_ratio=0.8)
"""

from mdsc.sampling.anndata_generation import generate_anndata
from mdsc.sampling.anndata_inpainting import inpaint_anndata

__all__ = ["generate_anndata", "inpaint_anndata"]
