"""Latents to log expression of all genes: the exact inverse of the PCA, and a residual network that starts at 0.

Real latents have their own expression, so they are learnt from cell by cell. Generated ones have none, only the set of
real cells that they should be like: they are compared set by set. They are drawn without gradients, so that the decoder
is taught and the denoiser is not.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.model.zero_start import ZeroLinear
from mdsc.perturbation.denoisers import FeedForward
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.set_losses import mmd2_unbiased


class Decoder(nn.Module):
    """expression = basis.to_genes(z) + residual(z).

    The basis is given with each call: the head holds it, and a weights file has no tensor twice.
    """

    def __init__(self, latent_size: int, num_genes: int, width: int = 256, num_layers: int = 2, dropout: float = 0.0):
        super().__init__()
        self.read = nn.Linear(latent_size, width)
        self.blocks = nn.ModuleList([FeedForward(width, dropout) for _ in range(num_layers)])
        self.head = ZeroLinear(width, num_genes)

    def forward(self, latent: Float[Tensor, "batch k"], basis: PcaBasis) -> Float[Tensor, "batch genes"]:
        """Log expression, in float32 whatever autocast says. It may be below 0: a clamp would move the mean of every
        gene that is seldom seen, and hide effects on it."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            h = self.read(latent)
            for block in self.blocks:
                h = h + block(F.layer_norm(h, h.shape[-1:]))
            return basis.to_genes(latent) + self.head(F.layer_norm(h, h.shape[-1:]))


def cellwise_loss(
    decoded: Float[Tensor, "batch genes"], expression: Float[Tensor, "batch genes"]
) -> Float[Tensor, " batch"]:
    """Squared error of each real cell from its own latents, mean over genes."""
    return (decoded - expression).square().mean(dim=1)


def set_losses(
    decoded: Float[Tensor, "groups n genes"], expression: Float[Tensor, "groups m genes"], basis: PcaBasis
) -> dict[str, Float[Tensor, " groups"]]:
    """Of sets of decoded latents against sets of real cells, n and m at least 2.

    mmd: unbiased squared MMD between the latents of what is decoded and of the real cells. pseudobulk: squared error of
    the mean log expression, mean over genes.
    """
    real, made = (basis.to_latent(cells.flatten(0, 1)).unflatten(0, cells.shape[:2]) for cells in (expression, decoded))
    difference = decoded.mean(dim=1) - expression.mean(dim=1)
    return {"mmd": mmd2_unbiased(made, real), "pseudobulk": difference.square().mean(dim=1)}
