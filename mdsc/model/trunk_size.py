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


def training_flops(model: MdscModel, num_genes: int) -> int:
    """Floating-point operations of one cell in a training step of the whole model; 0 without blocks."""
    config = model.config
    if not config.num_layers:
        return 0
    between = attention_flops(config.num_layers, config.hidden_size, num_genes)
    return num_genes * (matrix_flops(trunk_parameters(model.blocks)) + between)
