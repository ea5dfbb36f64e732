"""The cell-state pathway: what the visible genes say of the cell, carried to every gene without attention.

The visible counts are read through a factor model, log1p(count_g) = b_g + v_g . z + noise_g, z ~ N(0, diag(1/lambda)).
Its posterior mean given *any* set of visible genes is exact (factor analysis; Bishop 2006, "Pattern Recognition and
Machine Learning", section 12.2.4):

    z = (diag(lambda) + sum_g w_g v_g v_g^T)^-1  sum_g w_g v_g (log1p(count_g) - b_g)        w_g = 1 / noise variance

so that a state from 20 visible genes is shrunk and one from 2,000 is not, and a visible zero counts as evidence. An MLP
bends it, and a low-rank head reads it out gene by gene: logits += W (state * f_g). All of b, v, w, lambda and f are
learned; they start from a truncated SVD of training cells (`MdscModel` initialisation).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.model.condition_prior import CellPrior, Moved
from mdsc.model.factor_posterior import factor_posterior
from mdsc.model.keyed_dropout import KeyedDropout
from mdsc.model.zero_start import ZeroLinear


class CellState(nn.Module):
    """Pools the visible genes of each cell into a state, and reads the state out as logits of every gene.

    prior: what conditions say before any gene is seen; None stands for prior means of 0.
    moved: where a part of the cell was seen under other conditions; None where it was not.
    """

    PRIOR_GENES = 16.0  # genes; weight of "nothing seen" in a plain mean
    PRIOR_DEPTH = 10.0  # counts; weight of the mean cell in the estimate of a cell's depth

    def __init__(
        self, num_genes: int, num_tokens: int, state_size: int, condition_size: int, dropout: float, pooling: str
    ):
        super().__init__()
        self.pooling = pooling
        self.dropout = KeyedDropout(dropout)
        self.num_tokens = num_tokens
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
        counts: Int[Tensor, "batch genes"],
        condition: Float[Tensor, "batch condition"],
        prior: CellPrior | None = None,
        moved: Moved | None = None,
    ) -> tuple[Float[Tensor, "batch summary"], Float[Tensor, "batch state"]]:
        """What the visible genes say, always in float32. counts: 0 where not visible.

        Returns:
            the pooled summary: posterior mean of z and log relative depth,
            and the state bent from it.
        """
        with torch.autocast(gene_ids.device.type, enabled=False):
            visible = (tokens < self.num_tokens).float()
            counts = counts.float() * visible  # hidden counts have no way in, whatever the caller left in them
            mean = self.pool(gene_ids, counts, visible, prior, moved)
            depth = self.log_relative_depth(gene_ids, counts, visible, prior, moved)
            summary = torch.cat([mean, depth[:, None]], dim=-1)
            # A drug moves the prior also along directions that tell cell types apart. Were that bent like evidence, a
            # cell that is told the drug alone would begin as one type, and what is drawn first would confirm it.
            beyond = summary if prior is None else summary - torch.cat([prior.state, prior.log_depth[:, None]], dim=-1)
            bent = F.silu(self.enter(beyond) + self.condition(condition.float()))
            bent = F.silu(self.middle(bent))
            state = self.dropout(self.skip(summary) + self.leave(bent))
            return summary, state

    def pool(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        counts: Float[Tensor, "batch genes"],
        visible: Float[Tensor, "batch genes"],
        prior: CellPrior | None = None,
        moved: Moved | None = None,
    ) -> Float[Tensor, "batch state"]:
        """E[z | visible genes] in prior standard deviations; pooling "mean": a shrunk mean of (log1p(count) - b) v."""
        residual = counts.log1p() - self.gene_value[gene_ids]
        loadings = self.gene_in(gene_ids)  # (batch, genes, state)
        if self.pooling == "mean":
            total = ((residual * visible)[:, None, :] @ loadings)[:, 0]
            known = 0.0 if prior is None else self.PRIOR_GENES * prior.state
            if moved is not None:
                known = known + (visible * moved.positions).sum(dim=-1, keepdim=True) * moved.by.state
            return (4.0 * total + known) / (visible.sum(dim=-1, keepdim=True) + self.PRIOR_GENES)  # of order one
        precision = self.log_precision[gene_ids].exp() * visible
        root = (0.5 * self.log_prior).exp()
        expected = None if prior is None else prior.state / root
        if moved is not None:
            residual = residual + moved.values(loadings, moved.by.state / root)
        mean, _ = factor_posterior(residual, loadings, precision, self.log_prior.exp(), expected)
        return mean * root

    def log_relative_depth(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        counts: Float[Tensor, "batch genes"],
        visible: Float[Tensor, "batch genes"],
        prior: CellPrior | None = None,
        moved: Moved | None = None,
    ) -> Float[Tensor, " batch"]:
        """log(observed / expected depth of the visible genes), both with PRIOR_DEPTH counts added.

        That is the posterior mean of a Poisson rate under a gamma prior with mean 1: near 0 while little is visible.
        It is on the same scale whatever genes are visible, so that a model trained on 1,024 genes can read 20,000.
        """
        expected = (self.mean_count[gene_ids] * visible).sum(dim=-1)
        known = 1.0 if prior is None else prior.log_depth.exp()
        counts = counts if moved is None else moved.counts(counts)
        return torch.log((counts.sum(dim=-1) + self.PRIOR_DEPTH * known) / (expected + self.PRIOR_DEPTH))

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
