"""Names of perturbations: `ctrl`, the symbol of a gene, or symbols joined by `+`."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64

from mdsc.errors import UserError

CONTROL = "ctrl"
"""Cells that no gene was perturbed in."""
COLUMN = "perturbation"
"""The condition column of shards, and the column of obs, that tells them."""


def perturbed_genes(name: str) -> tuple[str, ...]:
    """The genes of a perturbation, in alphabetical order; none for the control."""
    return tuple(sorted(gene for gene in name.split("+") if gene != CONTROL))


def canonical(name: str) -> str:
    """One name for what is written as `SPI1+ctrl`, `ctrl+SPI1` or `SPI1`, as `A+B` or `B+A`."""
    genes = perturbed_genes(name.replace(" ", ""))
    if not all(genes):
        raise UserError(f"{name!r} is no perturbation: write the symbol of a gene, or two joined by +, or {CONTROL}.")
    return "+".join(genes) or CONTROL


def combined_vectors(
    names: Iterable[str], vector_of: dict[str, Float64[np.ndarray, " features"]]
) -> dict[str, Float64[np.ndarray, " features"]]:
    """A vector for each perturbation all of whose genes have one: their sum, and 0 for the control."""
    zero = np.zeros_like(next(iter(vector_of.values())))
    found = {}
    for name in names:
        genes = perturbed_genes(name)
        if all(gene in vector_of for gene in genes):
            found[name] = sum((vector_of[gene] for gene in genes), start=zero)
    return found
