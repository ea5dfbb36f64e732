"""Genes of a cell cut into blocks, for a backbone that cannot look at all of them at once."""

from jaxtyping import Int
from torch import Tensor

from mdsc.diffusion.keyed_random import Stream, keyed_uniform


def gene_blocks(gene_ids: Int[Tensor, "batch genes"], size: int) -> list[Int[Tensor, "batch block"]]:
    """Places of the genes of each block: a random partition, `size` genes each at most and nearly the same number.

    Random as the gene sets of training are, so that visible and hidden genes, zeros and high counts are mixed; a gene's
    block depends on the genes that there are, not on their order.
    """
    order = keyed_uniform(Stream.BLOCK, gene_ids).argsort(dim=1)
    return list(order.tensor_split(-(-gene_ids.shape[1] // size), dim=1))
