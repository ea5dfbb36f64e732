"""What is expected of a gene is the exact law of a factor model, and a training cell's own noise has no part in it."""

import numpy as np
import pytest
import torch
from tiny_model import NUM_GENES, NUM_TOKENS, tiny_cells, tiny_model

from mdsc.model.gene_evidence import GeneEvidence

DEPTH = torch.tensor([0.3, -0.2, 0.1])


def exact(evidence: GeneEvidence, cells, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of each gene's v . z given the visible genes, and the surprise: conditioning in the space of
    the genes, where the model works in that of the factors."""
    genes, shown = cells["gene_ids"][cell].numpy(), (cells["tokens"][cell] < NUM_TOKENS).numpy()
    loadings = evidence.loadings.double().numpy()[genes]
    centred = np.log1p(cells["counts"][cell].numpy()) - evidence.gene_mean.double().numpy()[genes]
    noise = 1 / evidence.precision.double().numpy()[genes]
    prior = loadings @ loadings.T
    gain = prior[:, shown] @ np.linalg.inv(prior[np.ix_(shown, shown)] + np.diag(noise[shown]))
    mean = gain @ centred[shown]
    variance = np.diag(prior - gain @ prior[shown])
    surprise = np.where(shown, (centred - mean) / np.sqrt(noise), 0)
    return mean, np.sqrt(variance), surprise


def test_expectation_and_deviation_are_the_exact_conditional_law():
    evidence, cells = tiny_model().gene_evidence, tiny_cells()
    features, surprise = evidence(**{name: cells[name] for name in ("gene_ids", "tokens", "counts")},
                                  log_relative_depth=DEPTH, fold=None)  # fmt: skip
    for cell in range(3):
        genes = cells["gene_ids"][cell]
        mean, deviation, of_visible = exact(evidence, cells, cell)
        prior = evidence.loadings[genes].norm(dim=1).numpy()
        np.testing.assert_allclose(features[cell, :, 0], mean / evidence.gene_sd[genes].numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(features[cell, :, 1], 2 * mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(features[cell, :, 2], deviation / (prior + 0.02), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(surprise[cell, :, 0], of_visible, rtol=1e-3, atol=1e-4)
        level = evidence.gene_level[genes]
        assert torch.equal(features[cell, :, 3], level)
        assert torch.equal(features[cell, :, 4], DEPTH[cell].expand(20))
        assert torch.equal(features[cell, :, 5], level * DEPTH[cell])


def with_folds() -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """A model with tables for two folds, and for each fold a model that has these tables as its only ones."""
    model, alone = tiny_model(), [tiny_model(), tiny_model()]
    generator = torch.Generator().manual_seed(7)
    for name in ("gene_mean", "precision", "loadings"):
        own = getattr(model.gene_evidence, name)
        tables = torch.rand(2, *own.shape, generator=generator) + 0.2
        setattr(model.gene_evidence, f"fold_{name}", tables)
        for other, table in zip(alone, tables, strict=True):
            getattr(other.gene_evidence, name).copy_(table)
    return model, alone


def test_a_cell_of_a_fold_is_read_with_the_tables_without_it():
    model, (without_1, without_2) = with_folds()
    cells = tiny_cells()
    found = model(**cells, fold=torch.tensor([2, 0, 1])).logits
    for cell, expected in enumerate([without_2, tiny_model(), without_1]):
        torch.testing.assert_close(found[cell], expected(**cells).logits[cell], rtol=1e-5, atol=1e-5)
    unknown = model(**cells).logits
    torch.testing.assert_close(unknown, tiny_model()(**cells).logits, rtol=1e-5, atol=1e-5)
    assert (found[[0, 2]] - unknown[[0, 2]]).abs().max() > 1e-2


def test_a_checkpoint_holds_the_tables_of_all_cells_alone(tmp_path):
    model, _ = with_folds()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    cells = tiny_cells()
    assert torch.equal(loaded(**cells).logits, model(**cells).logits)
    assert all(len(buffer) == 0 for name, buffer in loaded.gene_evidence.named_buffers() if name.startswith("fold_"))
    assert torch.equal(loaded(**cells, fold=torch.tensor([1, 2, 0])).logits, model(**cells).logits)


def test_the_tables_are_fixed():
    model = tiny_model()
    assert not list(model.gene_evidence.parameters())
    model(**tiny_cells()).logits.square().sum().backward()  # no gradient is sought through the factor model
    assert all(parameter.grad is not None for parameter in model.gene_response.parameters())


@pytest.mark.parametrize("num_layers", [0, 2])
def test_without_factors_there_is_neither_evidence_nor_response(num_layers: int):
    names = {name.split(".")[0] for name, _ in tiny_model(num_layers=num_layers, factor_size=0).named_parameters()}
    assert not names & {"gene_evidence", "gene_response", "evidence_to_genes"}
    tiny_model(num_layers=num_layers, factor_size=0)(**tiny_cells())


def test_the_response_is_the_same_function_of_every_gene():
    response = tiny_model().gene_response
    features = torch.randn(2, NUM_GENES, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(NUM_GENES, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(response(features)[:, order], response(features[:, order]))


def test_the_response_is_a_small_network_beside_a_straight_line():
    """So that what is expected of a gene need not move its logits in proportion."""
    response = tiny_model().gene_response
    features = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    weights = {name: weight.double() for name, weight in response.state_dict().items()}
    hidden = features.double() @ weights["enter.weight"].T + weights["enter.bias"]
    bent = hidden / (1 + torch.exp(-hidden)) @ weights["leave.weight"].T + weights["leave.bias"]
    expected = bent + features.double() @ weights["skip.weight"].T
    torch.testing.assert_close(response(features).double(), expected, rtol=1e-4, atol=1e-5)
