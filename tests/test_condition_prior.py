"""Conditions are the prior mean of a cell's factors and depth: exact, whatever is visible beside them."""

import numpy as np
import pytest
import torch
from tiny_model import CONDITIONS, NUM_TOKENS, tiny_cells, tiny_model

from mdsc.model.condition_prior import CellPrior, ConditionPrior
from mdsc.model.modeling import MdscModel

DRUGS = {"drug": torch.tensor([1, 2, 1])}


def law_of_genes(values, mean, loadings, variance, factor_mean, noise, shown):
    """E[mean + loadings z | values of the genes shown], by conditioning in the space of the genes in float64.

    variance: of the factors. The model works in the space of the factors instead.
    """
    expected = mean + loadings @ factor_mean
    covariance = loadings @ np.diag(variance) @ loadings.T
    seen = covariance[np.ix_(shown, shown)] + np.diag(noise[shown])
    return expected + covariance[:, shown] @ np.linalg.solve(seen, values[shown] - expected[shown])


def told(model: MdscModel, **categories: torch.Tensor) -> CellPrior:
    return model.condition_prior(model.conditions(categories, None, 3, torch.device("cpu")))


def test_the_state_is_the_posterior_under_the_prior_of_the_conditions():
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    state, prior = model.cell_state, told(model, **DRUGS)
    visible = cells["tokens"] < NUM_TOKENS
    found = state.pool(cells["gene_ids"], cells["counts"].float(), visible.float(), prior)
    variance = np.exp(-state.log_prior.detach().double().numpy())
    for cell in range(3):
        genes = cells["gene_ids"][cell]
        loadings = state.gene_in(genes).detach().double().numpy()
        mean = state.gene_value[genes].detach().double().numpy()
        expected = law_of_genes(
            values=np.log1p(cells["counts"][cell].numpy()),
            mean=mean,
            loadings=loadings,
            variance=variance,
            factor_mean=prior.state[cell].detach().double().numpy() * np.sqrt(variance),
            noise=np.exp(-state.log_precision[genes].detach().double().numpy()),
            shown=visible[cell].numpy(),
        )
        of_factors = found[cell].detach().double().numpy() * np.sqrt(variance)
        np.testing.assert_allclose(mean + loadings @ of_factors, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[-1], prior.state[-1], atol=1e-5), "nothing is visible of the last cell"


def test_a_plain_mean_is_shrunk_to_what_conditions_say():
    model, cells = tiny_model(state_pooling="mean", **CONDITIONS), tiny_cells()
    state, prior, counts = model.cell_state, told(model, **DRUGS), cells["counts"].float()
    visible = (cells["tokens"] < NUM_TOKENS).float()
    found = state.pool(cells["gene_ids"], counts, visible, prior)
    torch.testing.assert_close(found[-1], prior.state[-1])
    weight = 16 / (16 + visible.sum(dim=1, keepdim=True))
    plain = state.pool(cells["gene_ids"], counts, visible)
    torch.testing.assert_close(found, plain + weight * prior.state)


def test_what_is_expected_of_a_gene_is_its_law_under_the_prior_of_the_conditions():
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    evidence, prior = model.gene_evidence, told(model, **DRUGS)
    inputs = {name: cells[name] for name in ("gene_ids", "tokens", "counts")}
    features, surprise = evidence(**inputs, log_relative_depth=torch.zeros(3), fold=None, prior=prior)
    for cell in range(3):
        genes, shown = cells["gene_ids"][cell], (cells["tokens"][cell] < NUM_TOKENS).numpy()
        values, mean = np.log1p(cells["counts"][cell].numpy()), evidence.gene_mean[genes].double().numpy()
        loadings, noise = evidence.loadings[genes].double().numpy(), 1 / evidence.precision[genes].double().numpy()
        factor_mean = prior.factors[cell].detach().double().numpy()
        law = law_of_genes(values, mean, loadings, np.ones(3), factor_mean, noise, shown)
        np.testing.assert_allclose(features[cell, :, 1].detach(), 2 * (law - mean), rtol=1e-3, atol=1e-4)
        of_visible = np.where(shown, (values - law) / np.sqrt(noise), 0)
        np.testing.assert_allclose(surprise[cell, :, 0].detach(), of_visible, rtol=1e-3, atol=1e-4)


def test_the_depth_of_the_conditions_counts_as_ten_counts_do():
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    state, prior = model.cell_state, told(model, **DRUGS)
    visible = (cells["tokens"] < NUM_TOKENS).float()
    found = state.log_relative_depth(cells["gene_ids"], cells["counts"].float(), visible, prior)
    expected = (state.mean_count[cells["gene_ids"]] * visible).sum(dim=1)
    factor = prior.log_depth.exp()
    torch.testing.assert_close(found, ((cells["counts"].sum(dim=1) + 10 * factor) / (expected + 10)).log())
    torch.testing.assert_close(found[-1], prior.log_depth[-1])


@pytest.mark.parametrize("hidden", ["some", "all"])
def test_the_logits_hear_of_each_part_of_the_prior(hidden: str):
    """Also where everything is hidden, which is where new cells begin."""
    model, cells = tiny_model(num_layers=0, **CONDITIONS), tiny_cells()
    rows = slice(2, 3) if hidden == "all" else slice(0, 2)
    cells = {name: value[rows] for name, value in cells.items()}
    model(**cells, categories={"drug": DRUGS["drug"][rows]}).logits.square().sum().backward()
    by_part = model.condition_prior.mean.weight.grad.split(model.condition_prior.sizes)
    assert all((part.abs().max(dim=1).values > 0).all() for part in by_part)


def test_what_is_bent_is_what_the_genes_say_beyond_the_conditions():
    """Where nothing is visible no prior is taken for evidence: the state follows it in a straight line."""
    model, cells = tiny_model(num_layers=0, **CONDITIONS), tiny_cells(batch=1)
    state, condition = model.cell_state, torch.zeros(1, 16)
    shift = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))

    def bent(scale: float) -> torch.Tensor:
        prior = CellPrior(scale * shift, torch.zeros(1, 3), torch.full((1,), scale))
        summary, found = state(cells["gene_ids"], cells["tokens"], cells["counts"], condition, prior)
        return found - state.skip(summary)

    assert (cells["tokens"] == NUM_TOKENS).all()
    torch.testing.assert_close(bent(2.0), bent(0.0), rtol=1e-4, atol=1e-5)
    summary, found = state(cells["gene_ids"], cells["tokens"], cells["counts"], condition, None)
    torch.testing.assert_close(found - state.skip(summary), bent(0.0), rtol=1e-4, atol=1e-5)


def test_two_conditions_add_up_in_the_prior():
    levels = {"condition_levels": {"drug": ["a"], "type": ["x"]}}
    model = tiny_model(**levels)
    nothing, one, other, both = (
        torch.cat([part.reshape(3, -1) for part in told(model, drug=torch.full((3,), a), type=torch.full((3,), b))], 1)
        for a, b in [(0, 0), (1, 0), (0, 1), (1, 1)]
    )
    torch.testing.assert_close(both - nothing, (one - nothing) + (other - nothing), rtol=1e-4, atol=1e-5)
    assert (one - nothing).abs().min() > 0


def test_a_new_prior_is_that_of_all_cells_and_a_model_without_conditions_has_none():
    prior = ConditionPrior(8, 4, 3)
    torch.nn.init.zeros_(prior.mean.weight)
    assert [tuple(part.shape) for part in prior(torch.randn(5, 8))] == [(5, 4), (5, 3), (5,)]
    assert not hasattr(tiny_model(), "condition_prior")
    new = MdscModel(tiny_model(**CONDITIONS).config)
    assert not new.condition_prior.mean.weight.any()
