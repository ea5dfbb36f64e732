"""The cell-state pathway: what the visible genes say of the cell, carried to every gene without attention.

The visible counts are read through a factor model, log1p(value_g) = b_g + v_g . z + noise_g, z ~ N(0, diag(1/lambda)).
Its posterior mean given *any* set of visible genes is exact (factor analysis; Bishop 2006, "Pattern Recognition and
Machine Learning", section 12.2.4):

    z = (diag(lambda) + sum_g w_g v_g v_g^T)^-1  sum_g w_g v_g (log1p(value_g) - b_g)        w_g = 1 / noise variance

so that a state from 20 visible genes is shrunk and one from 2,000 is not, and a visible zero counts as evidence. An MLP
bends it, and a low-rank head reads it out gene by gene: logits += W (state * f_g). All of a, b, v, w, lambda and f are
learned; they start from a truncated SVD of training cells (`MdscModel` initialisation).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.model.keyed_dropout import KeyedDropout


class CellState(nn.Module):
    """Pools the visible genes of each cell into a state, and reads the state out as logits of every gene."""

    PRIOR_GENES = 16.0  # genes; weight of "nothing seen" in a plain mean
    PRIOR_DEPTH = 10.0  # counts; weight of the mean cell in the estimate of a cell's depth

    def __init__(
        self, num_genes: int, num_tokens: int, state_size: int, condition_size: int, dropout: float, pooling: str
    ):
        super().__init__()
        self.pooling = pooling
        self.dropout = KeyedDropout(dropout)
        self.num_tokens = num_tokens
        self.token_value = nn.Parameter(torch.zeros(num_tokens))  # log1p of a token's typical count at the start
        self.gene_value = nn.Parameter(torch.zeros(num_genes))  # b
        self.log_precision = nn.Parameter(torch.zeros(num_genes))  # log w
        self.log_prior = nn.Parameter(torch.zeros(state_size))  # log lambda
        self.gene_in = nn.Embedding(num_genes, state_size)  # v
        self.gene_out = nn.Embedding(num_genes, state_size)  # f
        self.register_buffer("mean_count", torch.ones(num_genes))  # over training cells; scales the observed depth
        width = 2 * state_size
        self.skip = nn.Linear(state_size + 1, state_size)
        self.enter = nn.Linear(state_size + 1, width)
        self.condition = nn.Linear(condition_size, width, bias=False)
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, state_size)
        self.readout = ZeroLinear(state_size, num_tokens, bias=False)
        self.depth_readout = ZeroLinear(1, num_tokens, bias=False)

    def forward(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        tokens: Int[Tensor, "batch genes"],
        depth: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch condition"],
    ) -> tuple[Float[Tensor, "batch summary"], Float[Tensor, "batch state"], Float[Tensor, "batch genes 2"]]:
        """What the visible genes say, always in float32. depth: sum of the visible counts.

        Returns:
            the pooled summary: posterior mean of z and log relative depth,
            the state bent from it,
            and of each gene what the factor model expects of it (over the gene's mean), and how far its visible value
            lies from that, in standard deviations (0 where it is not visible): what is left for attention to explain.
        """
        with torch.autocast(gene_ids.device.type, enabled=False):
            visible = (tokens < self.num_tokens).float()
            mean, evidence = self.pool(gene_ids, tokens, visible)
            summary = torch.cat([mean, self.log_relative_depth(gene_ids, visible, depth.float())[:, None]], dim=-1)
            bent = F.silu(self.enter(summary) + self.condition(condition.float()))
            bent = F.silu(self.middle(bent))
            state = self.dropout(self.skip(summary) + self.leave(bent))
            return summary, state, evidence

    def pool(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        tokens: Int[Tensor, "batch genes"],
        visible: Float[Tensor, "batch genes"],
    ) -> tuple[Float[Tensor, "batch state"], Float[Tensor, "batch genes 2"]]:
        """E[z | visible genes] in prior standard deviations, and each gene's expectation and surprise (see forward).

        Pooling "mean" gives a plain shrunk mean of (log1p(value) - b) v instead, and expects each gene's mean.
        """
        residual = self.token_value[tokens.clamp(max=self.num_tokens - 1)] - self.gene_value[gene_ids]
        root_precision = (0.5 * self.log_precision[gene_ids]).exp()
        loadings = self.gene_in(gene_ids)  # (batch, genes, state)
        if self.pooling == "mean":
            total = ((residual * visible)[:, None, :] @ loadings)[:, 0]
            surprise = residual * root_precision * visible
            mean = 4.0 * total / (visible.sum(dim=-1, keepdim=True) + self.PRIOR_GENES)  # of order one
            return mean, torch.stack([torch.zeros_like(surprise), surprise], dim=-1)
        weighted = loadings * (root_precision.square() * visible)[..., None]
        precision = torch.diag(self.log_prior.exp()) + loadings.transpose(1, 2) @ weighted
        evidence = (residual[:, None, :] @ weighted).transpose(1, 2)  # (batch, state, 1)
        mean = torch.cholesky_solve(evidence, torch.linalg.cholesky(precision))
        expected = (loadings @ mean)[..., 0]
        surprise = (residual - expected) * root_precision * visible
        return mean[..., 0] * (0.5 * self.log_prior).exp(), torch.stack([expected, surprise], dim=-1)

    def log_relative_depth(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        visible: Float[Tensor, "batch genes"],
        depth: Float[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """log(observed / expected depth of the visible genes), both with PRIOR_DEPTH counts added.

        That is the posterior mean of a Poisson rate under a gamma prior with mean 1: near 0 while little is visible.
        It is on the same scale whatever genes are visible, so that a model trained on 1,024 genes can read 20,000.
        """
        expected = (self.mean_count[gene_ids] * visible).sum(dim=-1)
        return torch.log((depth + self.PRIOR_DEPTH) / (expected + self.PRIOR_DEPTH))

    def logits(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        summary: Float[Tensor, "batch summary"],
        state: Float[Tensor, "batch state"],
    ) -> Float[Tensor, "batch genes tokens"]:
        """The low-rank head: W (state * f_gene) + W' log relative depth, in float32."""
        with torch.autocast(gene_ids.device.type, enabled=False):
            by_depth = self.depth_readout(summary[:, -1:])[:, None, :]
            return self.readout(state[:, None, :] * self.gene_out(gene_ids)) + by_depth


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero (adaLN-Zero, heads).

    A class of its own because transformers initialises modules by their type: it would draw a plain nn.Linear anew, and
    it never asks about modules that hold no parameters themselves, such as a whole block.
    """
