"""Log expression and the latents that the diffusion runs on: a PCA of the training cells, kept with the model.

It is fitted once, on training cells, and only applied elsewhere. A PCA of test cells has axes of its own (other order,
other signs), so that what is drawn along them cannot be read with the axes of training.
"""

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor, nn

SD_FLOOR = 0.05
"""Log expression. What varies less in training is divided by this, not by its own sd, which may be 0."""


class PcaBasis(nn.Module):
    """Latents are principal components over their sd; without PCA (size None) they are genes over their sd.

    Buffers: mean (genes), components (k, genes; none without PCA), scale (k), so that every checkpoint has them.
    """

    def __init__(self, num_genes: int, size: int | None):
        super().__init__()
        self.num_genes, self.size = num_genes, size
        self.register_buffer("mean", torch.zeros(num_genes))
        self.register_buffer("scale", torch.ones(self.latent_size))
        if size is not None:
            self.register_buffer("components", torch.zeros(size, num_genes))

    @property
    def latent_size(self) -> int:
        """k."""
        return self.num_genes if self.size is None else self.size

    @classmethod
    def fit(cls, expression: sp.spmatrix | sp.sparray | np.ndarray, size: int | None, seed: int) -> "PcaBasis":
        """A basis of these cells (cells, genes), which must be of the training split.

        Sparse cells stay sparse (sklearn's ARPACK, with the mean taken off on the way). ValueError where a value is not
        finite, and where there are not `size` components.
        """
        num_cells, num_genes = expression.shape
        _require_finite(expression)
        basis = cls(num_genes, size)
        if size is None:
            if num_cells == 0:
                raise ValueError("no cells to take a mean of")
            mean, sd = _gene_moments(expression)
        else:
            mean, components, sd = _principal_components(expression, size, seed)
            basis.components.copy_(torch.from_numpy(np.ascontiguousarray(components)))
        basis.mean.copy_(torch.from_numpy(mean))
        basis.scale.copy_(torch.from_numpy(np.maximum(sd, SD_FLOOR)))
        return basis

    def to_latent(self, expression: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch k"]:
        """Log expression to latents; of training cells each has mean 0 and variance 1."""
        with torch.autocast(expression.device.type, enabled=False):
            centred = expression.to(self.mean.dtype) - self.mean
            return (centred if self.size is None else centred @ self.components.T) / self.scale

    def effect(self, change: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch k"]:
        """A change of log expression as that of latents."""
        with torch.autocast(change.device.type, enabled=False):
            change = change.to(self.mean.dtype)
            return (change if self.size is None else change @ self.components.T) / self.scale

    def to_genes(self, latent: Float[Tensor, "batch k"]) -> Float[Tensor, "batch genes"]:
        """The inverse, exact for cells within the span of the components. It may be below 0."""
        with torch.autocast(latent.device.type, enabled=False):
            scores = latent.to(self.mean.dtype) * self.scale
            return self.mean + (scores if self.size is None else scores @ self.components)


def _require_finite(expression: sp.spmatrix | sp.sparray | np.ndarray) -> None:
    values = expression.data if sp.issparse(expression) else expression
    if np.isfinite(values).all():
        return
    stored = expression.tocoo() if sp.issparse(expression) else sp.coo_array(~np.isfinite(expression))
    bad = np.flatnonzero(~np.isfinite(stored.data)) if sp.issparse(expression) else np.arange(stored.nnz)
    cell, gene = stored.row[bad[0]], stored.col[bad[0]]
    raise ValueError(f"expression is not finite at {len(bad)} places, the first in cell {cell}, gene {gene}")


def _gene_moments(expression: sp.spmatrix | sp.sparray | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (n - 1) of each gene, in float64."""
    n = expression.shape[0]
    if sp.issparse(expression):
        from sklearn.utils.sparsefuncs import mean_variance_axis

        mean, variance = mean_variance_axis(expression.tocsr(), axis=0)
    else:
        mean, variance = expression.mean(axis=0, dtype=np.float64), expression.var(axis=0, dtype=np.float64)
    return mean.astype(np.float64), np.sqrt(variance.astype(np.float64) * (n / max(n - 1, 1)))


def _principal_components(
    expression: sp.spmatrix | sp.sparray | np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.decomposition import PCA

    num_cells, num_genes = expression.shape
    most = min(num_cells - 1, num_genes)
    if not 1 <= size <= most:
        raise ValueError(f"{size} components of {num_cells} cells and {num_genes} genes: there are 1 to {most}")
    mean, sd = _gene_moments(expression)
    if sd.max() < 1e-6:  # ARPACK cannot begin where nothing varies
        return mean, np.eye(size, num_genes), np.zeros(size)
    # ARPACK needs the size to be below both; what is as small as that can be decomposed whole.
    solver = "arpack" if size < most else "covariance_eigh"
    pca = PCA(size, svd_solver=solver, random_state=seed).fit(expression.astype(np.float64))
    return pca.mean_, pca.components_, np.sqrt(np.maximum(pca.explained_variance_, 0))
