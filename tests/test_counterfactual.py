"""A cell of which a part was seen under other conditions than those that are asked for is the same cell, moved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData
from simulated_shards import simulated_counts
from tiny_checkpoint import tiny_checkpoint
from tiny_model import CONDITIONS, NUM_TOKENS, tiny_cells, tiny_model

from mdsc import inpaint_anndata
from mdsc.cli import main
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.evidence import Evidence, SeenUnder
from mdsc.errors import UserError
from mdsc.model.condition_prior import CellPrior, Moved
from mdsc.model.gene_evidence import GeneEvidence
from mdsc.sampling.guidance import guided
from mdsc.sampling.inpaint import fill
from mdsc.sampling.options import SamplerOptions

GENES = [f"G{number}" for number in range(20)]
FROM, TO = ({"drug": torch.full((3,), level)} for level in (1, 2))


def prior_of(model, categories: dict[str, torch.Tensor]) -> CellPrior:
    return model.condition_prior(model.conditions(categories, None, 3, torch.device("cpu")))


def moved(model, positions: torch.Tensor) -> Moved:
    return Moved.of(prior_of(model, TO), prior_of(model, FROM), positions)


def law_of_moved(values, mean, loadings, variance, before, after, noise, shown, seen):
    """E[factors now | values of the genes shown], by conditioning the joint law of factors and genes in float64.

    Genes that were seen are mean + loadings (factors - after + before) + noise, the others mean + loadings factors.
    """
    expected = mean + loadings @ after - np.where(seen, loadings @ (after - before), 0)
    covariance = loadings @ np.diag(variance) @ loadings.T + np.diag(noise)
    rows = np.ix_(shown, shown)
    gain = np.diag(variance) @ loadings[shown].T
    return after + gain @ np.linalg.solve(covariance[rows], (values - expected)[shown])


def some_of(visible: torch.Tensor) -> torch.Tensor:
    """Every other gene."""
    return visible & (torch.arange(visible.shape[1]) % 2 == 0)


@pytest.mark.parametrize("how", ["all", "some"])
def test_the_state_is_that_of_the_same_cell_moved(how: str):
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    state, before, after = model.cell_state, prior_of(model, FROM), prior_of(model, TO)
    visible = cells["tokens"] < NUM_TOKENS
    seen = visible if how == "all" else some_of(visible)
    inputs = (cells["gene_ids"], cells["counts"].float(), visible.float())
    found = state.pool(*inputs, after, moved(model, seen))
    variance = np.exp(-state.log_prior.detach().double().numpy())
    scale = np.sqrt(variance)
    for cell in range(3):
        genes = cells["gene_ids"][cell]
        expected = law_of_moved(
            values=np.log1p(cells["counts"][cell].numpy()),
            mean=state.gene_value[genes].detach().double().numpy(),
            loadings=state.gene_in(genes).detach().double().numpy(),
            variance=variance,
            before=before.state[cell].detach().double().numpy() * scale,
            after=after.state[cell].detach().double().numpy() * scale,
            noise=np.exp(-state.log_precision[genes].detach().double().numpy()),
            shown=visible[cell].numpy(),
            seen=seen[cell].numpy(),
        )
        np.testing.assert_allclose(found[cell].detach().double().numpy() * scale, expected, rtol=1e-3, atol=1e-4)
    if how == "all":
        torch.testing.assert_close(
            found, state.pool(*inputs, before) + after.state - before.state, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("how", ["all", "some"])
def test_what_is_expected_of_a_gene_moves_with_the_cell(how: str):
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    evidence, before, after = model.gene_evidence, prior_of(model, FROM), prior_of(model, TO)
    visible = cells["tokens"] < NUM_TOKENS
    seen = visible if how == "all" else some_of(visible)
    inputs = {name: cells[name] for name in ("gene_ids", "tokens", "counts")}
    inputs |= {"log_relative_depth": torch.zeros(3), "fold": None}
    features, surprise = evidence(**inputs, prior=after, moved=moved(model, seen))
    loadings = evidence.loadings[cells["gene_ids"]].double()
    for cell in range(3):
        genes = cells["gene_ids"][cell]
        factors = law_of_moved(
            values=np.log1p(cells["counts"][cell].numpy()),
            mean=evidence.gene_mean[genes].double().numpy(),
            loadings=loadings[cell].numpy(),
            variance=np.ones(3),
            before=before.factors[cell].detach().double().numpy(),
            after=after.factors[cell].detach().double().numpy(),
            noise=1 / evidence.precision[genes].double().numpy(),
            shown=visible[cell].numpy(),
            seen=seen[cell].numpy(),
        )
        expected = 2 * loadings[cell].numpy() @ factors
        np.testing.assert_allclose(features[cell, :, 1].detach(), expected, rtol=1e-3, atol=1e-4)
    if how == "all":
        plain, plain_surprise = evidence(**inputs, prior=before)
        torch.testing.assert_close(surprise, plain_surprise, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(features[..., 2], plain[..., 2])


def test_the_depth_moves_with_the_cell_and_what_is_drawn_counts_as_it_is():
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    state, before, after = model.cell_state, prior_of(model, FROM), prior_of(model, TO)
    visible = cells["tokens"] < NUM_TOKENS
    inputs = (cells["gene_ids"], cells["counts"].float(), visible.float())
    change = after.log_depth - before.log_depth
    found = state.log_relative_depth(*inputs, after, moved(model, visible))
    torch.testing.assert_close(found, state.log_relative_depth(*inputs, before) + change)
    seen = some_of(visible)
    found = state.log_relative_depth(*inputs, after, moved(model, seen))
    counts = cells["counts"].float()
    counts = torch.where(seen, counts * change.exp()[:, None], counts)
    torch.testing.assert_close(found, state.log_relative_depth(inputs[0], counts, inputs[2], after))


def test_a_plain_mean_moves_too():
    model, cells = tiny_model(state_pooling="mean", **CONDITIONS), tiny_cells()
    state, before, after = model.cell_state, prior_of(model, FROM), prior_of(model, TO)
    visible = cells["tokens"] < NUM_TOKENS
    inputs = (cells["gene_ids"], cells["counts"].float(), visible.float())
    found = state.pool(*inputs, after, moved(model, visible))
    torch.testing.assert_close(found, state.pool(*inputs, before) + after.state - before.state)


def test_the_counterfactual_of_simulated_cells_is_found_without_bias():
    """Control cells of a factor model, half of their genes visible; the truth is what these very cells would have."""
    generator = torch.Generator().manual_seed(0)
    num_cells, num_genes, size = 400, 100, 3
    evidence = GeneEvidence(num_genes, NUM_TOKENS, size)
    evidence.loadings.copy_(0.4 * torch.randn(num_genes, size, generator=generator))
    evidence.gene_mean.fill_(3.0)
    evidence.precision.fill_(1 / 0.25)
    before, after = torch.zeros(size), torch.tensor([1.5, -1.0, 0.5])
    factors = before + torch.randn(num_cells, size, generator=generator)
    noise = 0.5 * torch.randn(num_cells, num_genes, generator=generator)
    counts = (evidence.gene_mean + factors @ evidence.loadings.T + noise).expm1().round().clamp(min=0).int()
    hidden = torch.rand(counts.shape, generator=generator) < 0.5
    truth = (factors + after - before) @ evidence.loadings.T
    priors = [
        CellPrior(torch.zeros(num_cells, 0), mean.expand(num_cells, size), torch.zeros(num_cells))
        for mean in (before, after)
    ]
    inputs = {
        "gene_ids": torch.arange(num_genes).expand(counts.shape),
        "tokens": torch.where(hidden, NUM_TOKENS, 1),
        "counts": counts.masked_fill(hidden, 0),
        "log_relative_depth": torch.zeros(num_cells),
        "fold": None,
    }

    def error(**told) -> torch.Tensor:
        features, _ = evidence(**inputs, **told)
        return features[..., 1] / 2 - truth

    found = error(prior=priors[1], moved=Moved.of(priors[1], priors[0], ~hidden))
    plain = error(prior=priors[1])
    assert found.mean(dim=0).abs().max() < 0.05
    assert plain.mean(dim=0).abs().max() > 0.5, "control counts speak against the other condition"
    factual, _ = evidence(**inputs, prior=priors[0])
    its_error = factual[..., 1] / 2 - factors @ evidence.loadings.T
    torch.testing.assert_close(found, its_error, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"backbone": "latent", "num_latents": 4}, {"state_pooling": "mean"}])
def test_seen_under_the_same_conditions_is_the_plain_reading_to_the_bit(changes: dict):
    model, cells = tiny_model(**CONDITIONS, **changes), tiny_cells()
    positions = cells["tokens"] < NUM_TOKENS
    plain = model(**cells, categories=TO).logits
    same = model(**cells, categories=TO, seen_under=SeenUnder(positions, TO)).logits
    assert torch.equal(plain, same)
    other = model(**cells, categories=TO, seen_under=SeenUnder(positions, FROM)).logits
    assert (plain - other)[:2].abs().max() > 1e-3
    assert torch.equal(plain[2], other[2]), "nothing is visible of the last cell"


def evidence_of_tiny(model) -> Evidence:
    cells = tiny_cells()
    visible = cells["tokens"] < NUM_TOKENS
    return Evidence(
        cells["gene_ids"],
        cells["counts"].int(),
        visible,
        cells["is_pad"],
        torch.arange(3),
        TO,
        seen_under=SeenUnder(visible, FROM),
    )


def test_what_is_drawn_is_not_taken_for_seen():
    model, tokenizer = tiny_model(**CONDITIONS), make_tokenizer("count", NUM_TOKENS)
    evidence, told = evidence_of_tiny(model), []

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors, *, seen_under):
        assert torch.equal(categories["drug"], TO["drug"][: len(tokens)])
        assert torch.equal(seen_under.categories["drug"], FROM["drug"][: len(tokens)])
        told.append((tokens, seen_under.positions))
        return model(gene_ids, tokens, counts, is_pad, categories, vectors, seen_under=seen_under).logits

    fill(guided(predict, 1.0), tokenizer, evidence, SamplerOptions(num_steps=4))
    assert len(told) > 3
    for tokens, positions in told:
        assert len(tokens) in (len(positions), 3)
        whole = evidence.visible if len(positions) == 3 else None
        assert whole is None or torch.equal(positions, whole)
        assert not (positions & (tokens >= NUM_TOKENS)).any()
    assert any(((tokens < NUM_TOKENS) & ~positions).any() for tokens, positions in told), "draws become visible"


def test_cells_are_chosen_with_what_they_were_seen_under():
    evidence = evidence_of_tiny(tiny_model(**CONDITIONS))
    chosen = evidence.select(torch.tensor([True, False, True]))
    assert torch.equal(chosen.seen_under.positions, evidence.visible[[0, 2]])
    assert len(chosen.seen_under.categories["drug"]) == 2
    assert replace(evidence, seen_under=None).select(slice(1)).seen_under is None


def test_guidance_weighs_the_moved_cell_against_the_cell_without_conditions():
    model, evidence = tiny_model(**CONDITIONS), evidence_of_tiny(None)
    tokenizer = make_tokenizer("count", NUM_TOKENS)

    def predict(*cells, **others):
        return model(*cells, **others).logits

    given = torch.log_softmax(evidence.predict(predict, tokenizer), dim=-1)
    bare = replace(evidence, categories={}, seen_under=None)
    free = torch.log_softmax(bare.predict(predict, tokenizer), dim=-1)
    expected = torch.log_softmax(2 * given - free, dim=-1)
    torch.testing.assert_close(evidence.predict(guided(predict, 2.0), tokenizer), expected)
    assert torch.equal(torch.log_softmax(evidence.predict(guided(predict, 0.0), tokenizer), dim=-1), free)


@pytest.fixture
def adata() -> AnnData:
    adata = AnnData(simulated_counts(6, 20, mean=2.0))
    adata.var_names = GENES
    return adata


def test_cells_are_filled_in_as_under_another_condition(adata: AnnData):
    checkpoint = tiny_checkpoint(GENES)
    with torch.no_grad():
        checkpoint.model.gene_evidence.loadings.normal_()
    options = {"mask_ratio": 0.5, "num_steps": 3, "condition": {"drug": "Imatinib"}}
    plain = inpaint_anndata(checkpoint, adata, **options)
    same = inpaint_anndata(checkpoint, adata, seen_under={"drug": "Imatinib"}, **options)
    assert (plain.layers["mdsc_mean"] != same.layers["mdsc_mean"]).nnz == 0
    other = inpaint_anndata(checkpoint, adata, seen_under={"drug": "DMSO_TF"}, **options)
    assert (plain.layers["mdsc_mean"] != other.layers["mdsc_mean"]).nnz > 20
    assert other.uns["mdsc"]["seen_under"] == {"drug": "DMSO_TF"}
    with pytest.raises(UserError, match=r"--seen-under drug=DMSO: .* perhaps you meant DMSO_TF"):
        inpaint_anndata(checkpoint, adata, seen_under={"drug": "DMSO"}, **options)


def test_the_command_takes_seen_under(adata: AnnData, tmp_path, capsys):
    from tiny_checkpoint import save_tiny_checkpoint

    run = save_tiny_checkpoint(tmp_path / "run", GENES)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    command = ["sample", "--checkpoint", str(run), "--output", str(tmp_path / "out.h5ad"), "--num-steps", "2"]
    fill_in = ["--input", str(tmp_path / "cells.h5ad"), "--mask-ratio", "0.5", "--condition", "drug=Imatinib"]
    assert main([*command, *fill_in, "--seen-under", "drug=DMSO_TF"]) == 0
    import anndata

    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    direct = inpaint_anndata(
        run, adata, mask_ratio=0.5, num_steps=2, condition={"drug": "Imatinib"}, seen_under={"drug": "DMSO_TF"}
    )
    assert (found.layers["mdsc_sampled"] != direct.layers["mdsc_sampled"]).nnz == 0
    capsys.readouterr()
    assert main([*command, "--num-cells", "3", "--seen-under", "drug=DMSO_TF"]) == 2
    assert "--seen-under is for filling in cells" in capsys.readouterr().err
