"""The size of a model and the arithmetic of its training step, counted as for MFU: no more than what a step must do.

N, the trunk: the weights of the blocks without those of adaLN. The latter are multiplied once a cell and not once a
gene, as are conditions and cell state; tables of genes and tokens are looked up. To count them as if they worked on
every gene would overstate MFU by up to a half. A training step takes 6 N floating-point operations a gene (2 forward, 4
backward; Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and what attention does between genes beside.
"""

from collections.abc import Iterable

from torch import nn

from mdsc.model.blocks import DiTBlock
from mdsc.model.modeling import MdscModel

NONZERO_SHARE = 0.125
"""Of the genes of a training example, those whose nonzero count is visible: of 1,024 genes drawn by detection rate 27%
are nonzero on pbmc3k, and of these half are hidden on average."""


def trunk_parameters(blocks: Iterable[DiTBlock] | Iterable[nn.Module]) -> int:
    """Weights and biases of the blocks, without adaLN's modulation."""
    return sum(
        parameter.numel()
        for block in blocks
        for name, parameter in block.named_parameters()
        if not name.startswith("modulation.")
    )


def matrix_flops(num_parameters: int) -> int:
    """Floating-point operations that a training step does for each gene of a cell, without attention: 6 N."""
    return 6 * num_parameters


def attention_flops(num_layers: int, hidden_size: int, num_genes: int) -> int:
    """Those of q k^T and of the weighted sum of v, for each gene of a cell: 12 n d a layer, forward and backward.

    A kernel that computes q k^T anew on the way back does more, but that is its own affair.
    """
    return 12 * num_layers * num_genes * hidden_size


def training_flops(model: MdscModel, num_genes: int, *, nonzero_share: float = NONZERO_SHARE) -> int:
    """Floating-point operations of one cell in a training step of the whole model; 0 without blocks.

    nonzero_share: of the genes, those whose nonzero count is visible; the latent backbone reads no others.
    """
    config = model.config
    if not config.num_layers:
        return 0
    if config.backbone == "latent":
        return _latent_flops(model, num_genes, round(nonzero_share * num_genes))
    return num_genes * _flops_of_each(model.blocks, config.num_layers, config.hidden_size, num_genes)


def _flops_of_each(blocks: Iterable[nn.Module], num_layers: int, hidden_size: int, num_sources: int) -> int:
    return matrix_flops(trunk_parameters(blocks)) + attention_flops(num_layers, hidden_size, num_sources)


def _latent_flops(model: MdscModel, num_genes: int, num_nonzero: int) -> int:
    """A part for each gene, one for each nonzero gene that is read, and one for each latent."""
    config, read, readout = model.config, model.latent_read.attention, model.latent_readout.attention
    between = attention_flops(1, config.hidden_size, config.num_latents)
    of_gene = matrix_flops(trunk_parameters([readout.query, readout.out, model.latent_readout.mlp])) + between
    of_nonzero = matrix_flops(trunk_parameters([read.key_value])) + between
    of_latent = matrix_flops(trunk_parameters([read.query, read.out, readout.key_value]))
    of_latent += _flops_of_each(model.blocks, config.num_layers, config.hidden_size, config.num_latents)
    return num_genes * of_gene + num_nonzero * of_nonzero + config.num_latents * of_latent
