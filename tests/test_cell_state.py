"""The cell-state pathway: an exact posterior of the factor model, and depth on the scale of one cell."""

import numpy as np
import pytest
import torch
from reference import factor_posterior
from tiny_model import NUM_GENES, NUM_TOKENS, tiny_cells, tiny_model

from mdsc.model.factor_posterior import factor_posterior as posterior_of_tensors


def arrays(state):
    parameters = {name: parameter.detach().double().numpy() for name, parameter in state.named_parameters()}
    return [parameters[name] for name in ("gene_value", "log_precision", "log_prior", "gene_in.weight")]


def pooled(state, cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the state pools, and visible and log1p counts of the cells."""
    visible = cells["tokens"] < NUM_TOKENS
    mean = state.pool(cells["gene_ids"], cells["counts"].float(), visible.float())
    return mean.detach().numpy(), visible.numpy(), np.log1p(cells["counts"].numpy())


def test_the_state_is_the_exact_posterior_of_the_factor_model():
    state, cells = tiny_model().cell_state, tiny_cells(batch=5)
    gene_value, log_precision, log_prior, loadings = arrays(state)
    mean, visible, values = pooled(state, cells)
    for cell, shown in enumerate(visible):
        seen = cells["gene_ids"][cell].numpy()[shown]
        precision, prior = np.exp(log_precision[seen]), np.exp(log_prior)
        z = factor_posterior(values[cell, shown], gene_value[seen], loadings[seen], precision, prior)
        np.testing.assert_allclose(mean[cell], z * np.sqrt(prior), rtol=1e-4, atol=1e-5)


def test_nothing_visible_leaves_the_prior_mean():
    mean, _, _ = pooled(tiny_model().cell_state, tiny_cells())
    assert (mean[-1] == 0).all()
    assert np.abs(mean[:-1]).min() > 0


def test_a_precision_that_is_not_positive_is_told_by_nan_in_its_cell_alone():
    """A step with it is skipped (`is_admitted`); what a failed factorisation has left would be finite and wrong."""
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(2, 5, 3, generator=generator)
    precision = torch.tensor([1.0, -1.0])[:, None].expand(2, 5)
    mean, root = posterior_of_tensors(torch.ones(2, 5), loadings, precision, torch.full((3,), 0.1))
    assert mean[0].isfinite().all()
    assert root[0].isfinite().all()
    assert mean[1].isnan().all()
    assert root[1].isnan().all()


def test_the_plain_mean_is_shrunk():
    model, cells = tiny_model(state_pooling="mean"), tiny_cells()
    gene_value, _, _, loadings = arrays(model.cell_state)
    mean, visible, values = pooled(model.cell_state, cells)
    for cell, shown in enumerate(visible):
        seen = cells["gene_ids"][cell].numpy()[shown]
        residual = values[cell, shown] - gene_value[seen]
        expected = 4 * (residual[:, None] * loadings[seen]).sum(axis=0) / (shown.sum() + 16)
        np.testing.assert_allclose(mean[cell], expected, rtol=1e-4, atol=1e-5)


def log_relative_depth(visible: torch.Tensor, depth: list[float]) -> torch.Tensor:
    """Of cells with all their counts in the first gene."""
    gene_ids = torch.arange(visible.shape[1]).expand(visible.shape)
    counts = torch.zeros(visible.shape)
    counts[:, 0] = torch.tensor(depth)
    return tiny_model().cell_state.log_relative_depth(gene_ids, counts, visible.float())


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
