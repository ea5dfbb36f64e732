"""What the visible genes say of each gene by itself, from a factor model that is fitted once and then kept.

log1p(count_g) = b_g + v_g . z + noise_g with z ~ N(0, I): probabilistic PCA of training cells (Tipping & Bishop 1999,
"Probabilistic principal component analysis", J. R. Stat. Soc. B 61), but a noise variance for each gene. Given any
visible genes, the law of v_g . z is Gaussian and exact (Bishop 2006, section 12.2.4): its mean is what is expected of
gene g, its deviation says how sure that is. `GeneResponse` turns both into logits, by one small function that all genes
share.

The model has learned the noise of the cells that it was fitted to. A training cell is therefore read with a model of
the other folds (`mdsc.data.folds`), any other cell with the one of all training cells.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.model.condition_prior import CellPrior, Moved
from mdsc.model.factor_posterior import factor_posterior
from mdsc.model.zero_start import ZeroLinear

NUM_FEATURES = 6
"""Of each gene: what is expected, in its standard deviations and as it is; deviation of that over the prior's; log mean
count over the panel's; log relative depth of the cell; the product of these two."""


class GeneEvidence(nn.Module):
    """Fixed tables of the factor model: of all training cells, and of all but those of each fold.

    The tables without a fold serve training alone, and no checkpoint keeps them.
    """

    def __init__(self, num_genes: int, num_tokens: int, factor_size: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.register_buffer("gene_sd", torch.ones(num_genes))
        self.register_buffer("gene_level", torch.zeros(num_genes))  # log mean count, standardised over genes
        self.register_buffer("gene_mean", torch.zeros(num_genes))  # b
        self.register_buffer("precision", torch.ones(num_genes))  # 1 / noise variance
        self.register_buffer("loadings", torch.zeros(num_genes, factor_size))  # v
        self.register_buffer("fold_gene_mean", torch.zeros(0, num_genes), persistent=False)
        self.register_buffer("fold_precision", torch.ones(0, num_genes), persistent=False)
        self.register_buffer("fold_loadings", torch.zeros(0, num_genes, factor_size), persistent=False)

    def forward(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        tokens: Int[Tensor, "batch genes"],
        counts: Int[Tensor, "batch genes"],
        log_relative_depth: Float[Tensor, " batch"],
        fold: Int[Tensor, " batch"] | None,
        prior: CellPrior | None = None,
        moved: Moved | None = None,
    ) -> tuple[Float[Tensor, "batch genes features"], Float[Tensor, "batch genes 1"]]:
        """NUM_FEATURES of each gene, and its surprise: how far its visible value lies from what is expected, in
        standard deviations (0 where it is hidden). All in float32.

        prior, moved: see `CellState`.
        """
        with torch.autocast(gene_ids.device.type, enabled=False):
            visible = (tokens < self.num_tokens).float()
            counts = counts.float() * visible  # hidden counts have no way in, not as a NaN either
            residual = counts.log1p() - _rows(self.gene_mean, self.fold_gene_mean, gene_ids, fold)
            precision = _rows(self.precision, self.fold_precision, gene_ids, fold)
            loadings = _rows(self.loadings, self.fold_loadings, gene_ids, fold)  # (batch, genes, factors)

            if moved is not None:
                residual = residual + moved.values(loadings, moved.by.factors)
            ones = torch.ones(loadings.shape[-1], device=loadings.device)
            prior_mean = None if prior is None else prior.factors
            mean, root = factor_posterior(residual, loadings, precision * visible, ones, prior_mean)
            expected = (loadings @ mean[..., None])[..., 0]
            half = torch.linalg.solve_triangular(root, loadings.mT, upper=False)
            deviation = half.square().sum(dim=1).sqrt() / (loadings.square().sum(dim=-1).sqrt() + 0.02)
            surprise = (residual - expected) * precision.sqrt() * visible

            level = self.gene_level[gene_ids]
            depth = log_relative_depth[:, None].expand_as(level)
            scaled = expected / self.gene_sd[gene_ids]
            features = [scaled, 2 * expected, deviation, level, depth, level * depth]
            return torch.stack(features, dim=-1), surprise[..., None]


def _rows(
    table: Tensor, fold_tables: Tensor, gene_ids: Int[Tensor, "batch genes"], fold: Int[Tensor, " batch"] | None
) -> Tensor:
    """The table's rows of these genes; of a cell in a fold, from the table without that fold."""
    if fold is None or not len(fold_tables):
        return table[gene_ids]
    return torch.cat([table[None], fold_tables])[fold[:, None], gene_ids]


class GeneResponse(nn.Module):
    """Features of each gene -> logits of its tokens. One function for all genes, which starts at zero."""

    WIDTH = 32

    def __init__(self, num_tokens: int):
        super().__init__()
        self.enter = nn.Linear(NUM_FEATURES, self.WIDTH)
        self.leave = ZeroLinear(self.WIDTH, num_tokens)
        self.skip = ZeroLinear(NUM_FEATURES, num_tokens, bias=False)

    def forward(self, features: Float[Tensor, "batch genes features"]) -> Float[Tensor, "batch genes tokens"]:
        with torch.autocast(features.device.type, enabled=False):
            return self.leave(F.silu(self.enter(features))) + self.skip(features)
