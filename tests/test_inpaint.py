"""fill and generate: posterior means, memory bounds, conditions."""

import math
from dataclasses import replace

import pytest
import torch
from exact_joint import ExactJoint
from test_ancestral import example

from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import hide
from mdsc.sampling.inpaint import fill, generate, posterior_mean
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden

FIVE = SamplerOptions(num_steps=5)


def test_posterior_mean_is_the_conditional_expectation():
    joint = ExactJoint(length=3)
    cells = joint.batch(joint.cells, num_pads=2)
    hidden = hide_fraction(cells.is_pad, 2 / 3, seed=0, cell_index=cells.cell_index)
    mean = posterior_mean(joint.predict, joint.tokenizer, hide(cells, hidden))
    assert mean.dtype == torch.float32
    for row, cell in enumerate(joint.cells):
        seen = ~hidden[row, :3]
        agrees = (joint.cells[:, seen] == cell[seen]).all(1)
        p = joint.p * agrees / joint.p[agrees].sum()
        expected = (p[:, None] * joint.cells).sum(0)
        assert mean[row, :3].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        assert (mean[row, :3][seen] == cell[seen]).all()
    assert (mean[:, 3:] == 0).all()


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
def test_memory_bound_changes_nothing(tokenizer):
    predict, evidence, tokenizer = example(tokenizer=tokenizer)
    largest = []

    def watched(gene_ids, *others):
        largest.append(gene_ids.numel() * tokenizer.num_tokens)
        return predict(gene_ids, *others)

    whole = fill(predict, tokenizer, evidence, FIVE, seed=2)
    bound = 3 * evidence.counts.shape[1] * tokenizer.num_tokens
    for max_logits in (bound, 1):
        largest.clear()
        parts = fill(watched, tokenizer, evidence, FIVE, seed=2, max_logits=max_logits)
        assert torch.equal(parts.sampled, whole.sampled)
        torch.testing.assert_close(parts.mean, whole.mean)
        assert max(largest) <= max(max_logits, bound // 3)
    assert torch.equal(whole.sampled[evidence.visible], evidence.counts[evidence.visible])
    assert torch.equal(whole.mean[evidence.visible], evidence.counts[evidence.visible].float())
    assert torch.equal(whole.sampled, draw_hidden(predict, evidence, tokenizer, FIVE, seed=2))


def test_mean_does_not_depend_on_seed_or_steps():
    predict, evidence, tokenizer = example()
    first = fill(predict, tokenizer, evidence, SamplerOptions(num_steps=1), seed=0)
    second = fill(predict, tokenizer, evidence, SamplerOptions(num_steps=7, temperature=2.0), seed=1)
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.sampled, second.sampled)


def test_sampled_counts_average_to_the_posterior_mean():
    """For one hidden gene the sample is a draw from the law that the mean is of."""
    joint = ExactJoint(length=3)
    cells = joint.batch(joint.cells[[5]].repeat(20_000, 1))
    filled = fill(joint.predict, joint.tokenizer, hide(cells, cells.gene_ids == 1), SamplerOptions(num_steps=3))
    drawn = filled.sampled[:, 1].double()
    assert abs(drawn.mean() - filled.mean[0, 1]) < 4 * drawn.std() / 20_000**0.5


def test_generated_cells_follow_the_joint_whatever_the_order_of_genes():
    joint = ExactJoint(length=3)
    order = torch.tensor([2, 0, 1])
    cells = generate(joint.predict, joint.tokenizer, order, 5_000, SamplerOptions(num_steps=64), max_logits=2**17)
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
    cells = generate(predict, joint.tokenizer, torch.arange(2), 5, one_step, **conditions, max_logits=2 * 6)
    assert torch.equal(cells, (2 * drug[:, None]).expand(5, 2).int())
    assert torch.equal(torch.cat([categories for categories, _ in seen]), drug)
    assert torch.equal(torch.cat([vectors for _, vectors in seen]), dose)


def test_nothing_hidden_gives_the_cell_back():
    predict, evidence, tokenizer = example()
    whole = replace(evidence, visible=~evidence.is_pad)
    filled = fill(predict, tokenizer, whole)
    assert torch.equal(filled.sampled, whole.counts)
    assert torch.equal(filled.mean, whole.counts.float())
