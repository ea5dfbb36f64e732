"""inpaint_anndata and generate_anndata, as a notebook calls them."""

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from simulated_shards import simulated_counts
from tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint

from mdsc import generate_anndata, inpaint_anndata
from mdsc.errors import UserError

GENES = [f"G{number}" for number in range(20)]


@pytest.fixture
def adata() -> AnnData:
    adata = AnnData(simulated_counts(6, 20, mean=2.0))
    adata.var_names = GENES
    return adata


def test_the_input_stays_as_it_was(adata: AnnData):
    filled = inpaint_anndata(tiny_checkpoint(GENES), adata, mask_ratio=0.5, num_steps=3)
    assert not adata.layers
    assert "mdsc_modelled" not in adata.var
    assert not adata.uns
    assert set(filled.layers) == {"mdsc_sampled", "mdsc_mean", "mdsc_hidden"}
    within = inpaint_anndata(tiny_checkpoint(GENES), adata, mask_ratio=0.5, num_steps=3, copy=False)
    assert within is adata
    assert (within.layers["mdsc_sampled"] != filled.layers["mdsc_sampled"]).nnz == 0


def test_a_folder_and_a_loaded_checkpoint_are_the_same(adata: AnnData, tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "run", GENES)
    one = inpaint_anndata(folder, adata, mask_ratio=0.5, num_steps=3)
    other = inpaint_anndata(tiny_checkpoint(GENES), adata, mask_ratio=0.5, num_steps=3)
    assert (one.layers["mdsc_mean"] != other.layers["mdsc_mean"]).nnz == 0
    made, again = (generate_anndata(checkpoint, 4, num_steps=3) for checkpoint in (folder, tiny_checkpoint(GENES)))
    assert (made.X != again.X).nnz == 0


def test_views_backed_files_and_filled_cells_can_be_filled(adata: AnnData, tmp_path):
    import anndata

    checkpoint = tiny_checkpoint(GENES)
    whole = inpaint_anndata(checkpoint, adata, mask_ratio=0.5, num_steps=3)
    view = inpaint_anndata(checkpoint, adata[:3], mask_ratio=0.5, num_steps=3)
    assert (view.layers["mdsc_sampled"] != whole.layers["mdsc_sampled"][:3]).nnz == 0
    np.testing.assert_allclose(view.layers["mdsc_mean"].toarray(), whole.layers["mdsc_mean"][:3].toarray(), rtol=1e-4)
    whole.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    again = inpaint_anndata(checkpoint, backed, mask_ratio=0.5, num_steps=3)
    backed.file.close()
    assert isinstance(again.X, sp.csr_matrix)
    assert (again.layers["mdsc_mean"] != whole.layers["mdsc_mean"]).nnz == 0


def test_it_says_what_it_does(adata: AnnData):
    said = []
    inpaint_anndata(tiny_checkpoint(GENES[:15]), adata, mask_ratio=0.8, num_steps=1, say=said.append)
    assert said == [
        "the AnnData: 6 cells x 20 genes; 5 are unknown to the model, kept as they are and never hidden "
        "(G15, G16, G17, ...)",
        "hiding 12 of the 15 modelled genes of each cell",
    ]


def test_mistakes_are_value_errors(adata: AnnData):
    with pytest.raises(UserError, match="is not given"):
        inpaint_anndata(tiny_checkpoint(GENES), adata)
    with pytest.raises(UserError, match="lists no gene"):
        generate_anndata(tiny_checkpoint(GENES), 3, genes=[])
    adata.X = adata.X * 0.5
    with pytest.raises(UserError, match="no integers"):
        inpaint_anndata(tiny_checkpoint(GENES), adata, mask_ratio=0.5)
