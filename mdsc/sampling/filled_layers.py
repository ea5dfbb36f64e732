"""The layers that filling in adds to an AnnData, collected a block of cells at a time."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64
from torch import Tensor

from mdsc.sampling.inpaint import Filled

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData


class FilledLayers:
    """shape: cells and genes of the AnnData; columns: its genes that the model knows."""

    def __init__(self, shape: tuple[int, int], columns: Int64[np.ndarray, " genes"]):
        self.columns = columns
        self.mean = np.zeros(shape, dtype=np.float32)
        self._is_modelled = np.zeros(shape[1], dtype=bool)
        self._is_modelled[columns] = True
        self._sampled: list[sp.csr_matrix] = []
        self._hidden: list[sp.csr_matrix] = []
        self._rows = 0

    def add(self, counts: "sp.csr_matrix", filled: Filled, hidden: Bool[Tensor, "cells genes"]) -> None:
        """counts: of all genes of the next cells; the others are of the modelled genes, in the order of `columns`."""
        import scipy.sparse as sp

        rows = slice(self._rows, self._rows + counts.shape[0])
        self._rows = rows.stop
        whole = counts.toarray()
        self.mean[rows] = whole
        self.mean[rows, self.columns] = filled.mean.numpy()
        whole[:, self.columns] = filled.sampled.numpy()
        self._sampled.append(sp.csr_matrix(whole))
        is_hidden = np.zeros(whole.shape, dtype=bool)
        is_hidden[:, self.columns] = hidden.numpy()
        self._hidden.append(sp.csr_matrix(is_hidden))

    def put_into(self, adata: "AnnData") -> None:
        import scipy.sparse as sp

        assert self._rows == adata.n_obs
        adata.layers["mdsc_sampled"] = sp.vstack(self._sampled, format="csr")
        adata.layers["mdsc_mean"] = self.mean
        adata.layers["mdsc_hidden"] = sp.vstack(self._hidden, format="csr")
        adata.var["mdsc_modelled"] = self._is_modelled
