"""fill and generate, and the posterior of each count: means, deviations, quantiles, draws, conditions."""

import math
from dataclasses import replace

import pytest
import torch
from exact_joint import ExactJoint
from test_ancestral import example

from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import hide
from mdsc.sampling.inpaint import fill, generate
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.posterior import posterior
from mdsc.sampling.samplers import draw_hidden

FIVE = SamplerOptions(num_steps=5)


def test_the_posterior_is_that_of_the_joint():
    """Mean, standard deviation and quantiles against sums over all cells that agree with what is visible."""
    joint = ExactJoint(length=3)
    cells = joint.batch(joint.cells, num_pads=2)
    hidden = hide_fraction(cells.is_pad, 2 / 3, seed=0, cell_index=cells.cell_index)
    levels = (0.05, 0.3, 0.5, 0.95)
    found = posterior(joint.predict, joint.tokenizer, hide(cells, hidden), with_sd=True, levels=levels)
    assert found.mean.dtype == torch.float32
    for row, cell in enumerate(joint.cells):
        seen = ~hidden[row, :3]
        agrees = (joint.cells[:, seen] == cell[seen]).all(1)
        p = joint.p * agrees / joint.p[agrees].sum()
        mean = (p[:, None] * joint.cells).sum(0)
        sd = ((p[:, None] * joint.cells**2).sum(0) - mean**2).clamp(min=0).sqrt()
        assert found.mean[row, :3].tolist() == pytest.approx(mean.tolist(), rel=1e-5)
        assert found.sd[row, :3].tolist() == pytest.approx(sd.tolist(), abs=1e-5)
        at_most = torch.stack([(p[:, None] * (joint.cells <= count)).sum(0) for count in range(3)])
        for level in levels:
            assert found.quantiles[level][row, :3].tolist() == (at_most < level).sum(0).tolist()
        assert (found.mean[row, :3][seen] == cell[seen]).all()
        assert (found.sd[row, :3][seen] == 0).all()
    for values in (found.mean, found.sd, *found.quantiles.values()):
        assert (values[:, 3:] == 0).all()


def test_a_quantile_is_the_smallest_count_that_reaches_its_level():
    """Also where the law reaches the level exactly: 0 and 1 have half each."""
    _, evidence, tokenizer = example(num_cells=2, tokenizer="count")

    def predict(gene_ids, *others):
        logits = torch.full((*gene_ids.shape, tokenizer.num_tokens), -torch.inf)
        logits[..., :2] = 0
        return logits

    found = posterior(predict, tokenizer, evidence, levels=(0.25, 0.5, 0.75))
    for level, expected in ((0.25, 0), (0.5, 0), (0.75, 1)):
        assert (found.quantiles[level][evidence.hidden] == expected).all()


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
def test_draws_have_the_spread_and_the_quantiles_of_the_posterior(tokenizer):
    """Of one hidden gene: high counts too, where a token's count depends on what is visible."""
    predict, evidence, tokenizer = example(num_cells=1, tokenizer=tokenizer, hidden_share=0.4)
    gene = evidence.hidden[0].nonzero()[0]
    visible = ~evidence.is_pad
    visible[0, gene] = False
    many = replace(evidence, visible=visible).select(torch.zeros(4_000, dtype=torch.long))
    many = replace(many, cell_index=torch.arange(4_000))
    filled = fill(predict, tokenizer, many, SamplerOptions(num_steps=1), with_sd=True, levels=(0.1, 0.5, 0.9))
    drawn = filled.draws[0][:, gene].double()
    sd = filled.posterior.sd[0, gene].item()
    assert sd > 0.3
    assert drawn.std().item() == pytest.approx(sd, rel=0.05)
    for level, quantile in filled.posterior.quantiles.items():
        count = quantile[0, gene].item()
        assert (drawn < count).double().mean() < level + 0.03
        assert (drawn <= count).double().mean() > level - 0.03


def test_filling_in_is_sampling_and_keeps_what_is_visible():
    predict, evidence, tokenizer = example()
    filled = fill(predict, tokenizer, evidence, FIVE, seed=2, num_draws=3)
    for draw, counts in enumerate(filled.draws):
        assert torch.equal(counts[evidence.visible], evidence.counts[evidence.visible])
        assert torch.equal(counts, draw_hidden(predict, evidence, tokenizer, FIVE, seed=2, draw_index=draw))
    assert torch.equal(filled.posterior.mean[evidence.visible], evidence.counts[evidence.visible].float())
    assert not torch.equal(filled.draws[0], filled.draws[1])
    assert not fill(predict, tokenizer, evidence, num_draws=0).draws


def test_mean_does_not_depend_on_seed_or_steps():
    predict, evidence, tokenizer = example()
    first = fill(predict, tokenizer, evidence, SamplerOptions(num_steps=1), seed=0)
    second = fill(predict, tokenizer, evidence, SamplerOptions(num_steps=7, temperature=2.0), seed=1)
    assert torch.equal(first.posterior.mean, second.posterior.mean)
    assert not torch.equal(first.draws[0], second.draws[0])


def test_sampled_counts_average_to_the_posterior_mean():
    """For one hidden gene the sample is a draw from the law that the mean is of."""
    joint = ExactJoint(length=3)
    cells = joint.batch(joint.cells[[5]].repeat(20_000, 1))
    filled = fill(joint.predict, joint.tokenizer, hide(cells, cells.gene_ids == 1), SamplerOptions(num_steps=3))
    drawn = filled.draws[0][:, 1].double()
    assert abs(drawn.mean() - filled.posterior.mean[0, 1]) < 4 * drawn.std() / 20_000**0.5


def test_generated_cells_follow_the_joint_whatever_the_order_of_genes():
    joint = ExactJoint(length=3)
    order = torch.tensor([2, 0, 1])
    cells = generate(joint.predict, joint.tokenizer, order, 5_000, SamplerOptions(num_steps=64))
    assert joint.total_variation(cells[:, order.argsort()]) < joint.noise_floor(5_000)


def test_conditions_reach_the_model_cell_by_cell():
    joint = ExactJoint(length=2)
    seen = []

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        seen.append((categories["drug"], vectors["dose"]))
        # Drug 1 gives 2 everywhere, drug 0 gives 0.
        logits = torch.full((*gene_ids.shape, 3), -math.inf)
        logits[categories["drug"] == 0, :, 0] = 0
        logits[categories["drug"] == 1, :, 2] = 0
        return logits

    drug = torch.tensor([0, 1, 1, 0, 1])
    dose = torch.arange(5, dtype=torch.float32)[:, None]
    conditions = {"categories": {"drug": drug}, "vectors": {"dose": dose}}
    one_step = SamplerOptions(num_steps=1)
    cells = generate(predict, joint.tokenizer, torch.arange(2), 5, one_step, **conditions)
    assert torch.equal(cells, (2 * drug[:, None]).expand(5, 2).int())
    assert torch.equal(torch.cat([categories for categories, _ in seen]), drug)
    assert torch.equal(torch.cat([vectors for _, vectors in seen]), dose)


def test_nothing_hidden_gives_the_cell_back():
    predict, evidence, tokenizer = example()
    whole = replace(evidence, visible=~evidence.is_pad)
    filled = fill(predict, tokenizer, whole)
    assert torch.equal(filled.draws[0], whole.counts)
    assert torch.equal(filled.posterior.mean, whole.counts.float())
