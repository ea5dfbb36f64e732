"""The cell-state pathway: an exact posterior of the factor model, and depth on the scale of one cell."""

import numpy as np
import pytest
import torch
from reference import factor_posterior
from tiny_model import NUM_GENES, NUM_TOKENS, tiny_cells, tiny_model


def arrays(state):
    parameters = {name: parameter.detach().double().numpy() for name, parameter in state.named_parameters()}
    names = ("token_value", "gene_value", "log_precision", "log_prior", "gene_in.weight")
    return [parameters[name] for name in names]


def test_the_state_is_the_exact_posterior_of_the_factor_model():
    state, cells = tiny_model().cell_state, tiny_cells(batch=5)
    token_value, gene_value, log_precision, log_prior, loadings = arrays(state)
    visible = cells["tokens"] < NUM_TOKENS
    mean, evidence = state.pool(cells["gene_ids"], cells["tokens"], visible.float())
    for cell in range(5):
        genes, shown = cells["gene_ids"][cell].numpy(), visible[cell].numpy()
        seen = genes[shown]
        values = token_value[cells["tokens"][cell].numpy()[shown]]
        z = factor_posterior(values, gene_value[seen], loadings[seen], np.exp(log_precision[seen]), np.exp(log_prior))
        expected = loadings[genes] @ z
        surprise = np.zeros(len(genes))
        surprise[shown] = (values - gene_value[seen] - expected[shown]) * np.exp(log_precision[seen] / 2)
        in_standard_deviations = z * np.exp(log_prior / 2)
        np.testing.assert_allclose(mean[cell].detach(), in_standard_deviations, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(evidence[cell, :, 0].detach(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(evidence[cell, :, 1].detach(), surprise, rtol=1e-4, atol=1e-5)


def test_nothing_visible_leaves_the_prior_mean():
    state, cells = tiny_model().cell_state, tiny_cells()
    mean, evidence = state.pool(cells["gene_ids"], cells["tokens"], (cells["tokens"] < NUM_TOKENS).float())
    assert mean[-1].eq(0).all()
    assert evidence[-1].eq(0).all()
    assert mean[:-1].abs().min() > 0


def test_the_plain_mean_is_shrunk_and_expects_each_genes_mean():
    model, cells = tiny_model(state_pooling="mean"), tiny_cells()
    token_value, gene_value, log_precision, _, loadings = arrays(model.cell_state)
    visible = cells["tokens"] < NUM_TOKENS
    mean, evidence = model.cell_state.pool(cells["gene_ids"], cells["tokens"], visible.float())
    for cell in range(3):
        shown = visible[cell].numpy()
        seen = cells["gene_ids"][cell].numpy()[shown]
        residual = token_value[cells["tokens"][cell].numpy()[shown]] - gene_value[seen]
        expected = 4 * (residual[:, None] * loadings[seen]).sum(axis=0) / (shown.sum() + 16)
        np.testing.assert_allclose(mean[cell].detach(), expected, rtol=1e-4, atol=1e-5)
        surprise = np.zeros(len(shown))
        surprise[shown] = residual * np.exp(log_precision[seen] / 2)
        np.testing.assert_allclose(evidence[cell, :, 1].detach(), surprise, rtol=1e-4, atol=1e-5)
    assert evidence[:, :, 0].eq(0).all()


def log_relative_depth(visible: torch.Tensor, depth: list[float]) -> torch.Tensor:
    gene_ids = torch.arange(visible.shape[1]).expand(visible.shape)
    return tiny_model().cell_state.log_relative_depth(gene_ids, visible.float(), torch.tensor(depth))


def test_relative_depth_is_the_posterior_mean_of_a_poisson_rate():
    """Counts ~ Poisson(rate * expected), rate ~ Gamma(10, 10): its posterior mean, by a sum over a grid."""
    visible = torch.zeros(3, NUM_GENES)
    visible[0, 3:9] = visible[1, ::2] = 1
    depth = [17.0, 0.0, 0.0]
    found = log_relative_depth(visible, depth)
    expected_counts = visible.numpy() @ tiny_model().cell_state.mean_count.double().numpy()
    rate = np.linspace(1e-6, 12, 200_000)
    for cell in range(3):
        log_weight = (10 - 1 + depth[cell]) * np.log(rate) - (10 + expected_counts[cell]) * rate
        weight = np.exp(log_weight - log_weight.max())
        np.testing.assert_allclose(found[cell], np.log((weight * rate).sum() / weight.sum()), rtol=1e-4, atol=1e-5)
    assert found[2] == 0  # nothing seen


def test_a_cell_as_deep_as_the_mean_has_relative_depth_0_whatever_is_visible():
    mean_count = tiny_model().cell_state.mean_count
    few, many = torch.zeros(NUM_GENES), torch.ones(NUM_GENES)
    few[:4] = 1
    found = log_relative_depth(torch.stack([few, many]), [mean_count[:4].sum().item(), mean_count.sum().item()])
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize("autocast", [False, True])
def test_the_pathway_is_float32_whatever_the_trunk_is(autocast: bool):
    model, cells = tiny_model(num_layers=0), tiny_cells()
    expected = model(**cells)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(**cells)
    assert torch.equal(found.cell_state, expected.cell_state)
    assert torch.equal(found.logits, expected.logits)
