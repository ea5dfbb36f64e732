"""Names of perturbations, and the vectors of several genes together."""

import numpy as np
import pytest

from mdsc.data.perturbations import CONTROL, canonical, combined_vectors, perturbed_genes
from mdsc.errors import UserError


@pytest.mark.parametrize(
    ("written", "name"),
    [("SPI1+ctrl", "SPI1"), ("ctrl+SPI1", "SPI1"), ("SPI1", "SPI1"), ("KLF1+AHR", "AHR+KLF1"), ("ctrl", CONTROL)],
)
def test_one_perturbation_has_one_name(written: str, name: str):
    assert canonical(written) == name


@pytest.mark.parametrize("written", ["", "SPI1+", "+"])
def test_what_names_no_gene_is_refused(written: str):
    with pytest.raises(UserError, match="is no perturbation"):
        canonical(written)


def test_vectors_of_several_genes_are_summed_and_the_control_has_none():
    vector_of = {"A": np.array([1.0, 2.0]), "B": np.array([10.0, 0.0])}
    found = combined_vectors(["A", "A+B", "A+C", CONTROL], vector_of)
    assert {name: vector.tolist() for name, vector in found.items()} == {"A": [1, 2], "A+B": [11, 2], CONTROL: [0, 0]}
    assert perturbed_genes("A+B") == ("A", "B")
    assert perturbed_genes(CONTROL) == ()
