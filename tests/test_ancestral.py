"""The ancestral sampler against the exact law of a tiny joint, and what it must never do to the evidence."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from exact_joint import ExactJoint
from scipy import stats

from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Evidence, hide
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.errors import UserError
from mdsc.sampling.ancestral import time_grid
from mdsc.sampling.categorical import draw
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden

NUM_SAMPLES = 20_000


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=3)


def ancestral(predict, evidence, tokenizer, *, seed, callback=None, **options):
    options = SamplerOptions(sampler="ancestral", **options)
    return draw_hidden(predict, evidence, tokenizer, options, seed=seed, callback=callback)


def sample(joint: ExactJoint, **options) -> torch.Tensor:
    return ancestral(joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, **{"seed": 0, **options})


def example(num_cells=8, num_genes=40, num_pads=3, hidden_share=0.6, tokenizer="rank"):
    """Overdispersed counts of which most are hidden, with pads, and a model whose logits depend on everything seen."""
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.negative_binomial(0.3, 0.05, (num_cells, num_genes)), dtype=torch.int32)
    is_pad = torch.zeros(num_cells, num_genes, dtype=torch.bool)
    is_pad[:, num_genes - num_pads :] = True
    cell_index = torch.arange(num_cells)
    hidden = hide_fraction(is_pad, hidden_share, seed=1, cell_index=cell_index)
    evidence = Evidence(
        gene_ids=torch.arange(num_genes).expand(num_cells, num_genes),
        counts=counts * ~(hidden | is_pad),
        visible=~(hidden | is_pad),
        is_pad=is_pad,
        cell_index=cell_index,
    )
    tokenizer = make_tokenizer(tokenizer)
    table = torch.tensor(rng.standard_normal((num_genes, tokenizer.num_tokens)), dtype=torch.float32)

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        seen = torch.where(tokens < tokenizer.num_tokens, tokens, 0).sum(1).float()
        slope = (0.02 * seen + 0.1 * counts.sum(dim=1).log1p())[:, None, None]
        return table[gene_ids] - slope * torch.arange(tokenizer.num_tokens) / 10

    return predict, evidence, tokenizer


def test_time_grids_run_from_one_to_exactly_zero():
    assert time_grid(4, "uniform") == [1, 0.75, 0.5, 0.25, 0]
    # cos(pi/8), cos(pi/4), cos(3 pi/8)
    assert time_grid(4, "cosine") == pytest.approx([1, 0.9238795, 0.7071068, 0.3826834, 0], abs=1e-7)
    for grid in ("uniform", "cosine"):
        assert time_grid(7, grid)[0] == 1
        assert time_grid(7, grid)[-1] == 0
        assert (np.diff(time_grid(7, grid)) < 0).all()
        assert time_grid(1, grid) == [1, 0]


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_visible_share_follows_alpha(grid):
    """Each step reveals (alpha_s - alpha_t) / (1 - alpha_t) of what is hidden, so that 1 - alpha_s are left."""
    predict, evidence, tokenizer = example(num_cells=50, num_genes=400, num_pads=0, hidden_share=1.0)
    left = []
    ancestral(predict, evidence, tokenizer, num_steps=8, grid=grid, seed=0,
              callback=lambda step, state: left.append(state.hidden.double().mean().item()))  # fmt: skip
    for share, t in zip(left, time_grid(8, grid)[1:], strict=True):
        assert abs(share - t) <= 4.5 * math.sqrt(t * (1 - t) / evidence.counts.numel())


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_few_steps_give_the_law_that_few_steps_have(joint, grid, num_steps):
    """Summed over every way the sampler can go, times and independent draws within a step included."""
    law = joint.law_of_ancestral(time_grid(num_steps, grid))
    assert joint.total_variation(sample(joint, num_steps=num_steps, grid=grid), law) < joint.noise_floor(
        NUM_SAMPLES, law
    )


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_many_steps_reach_the_joint_to_the_noise_floor(joint, grid):
    assert joint.total_variation(sample(joint, num_steps=256, grid=grid)) < joint.noise_floor(NUM_SAMPLES)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_steps": 1}, id="all at once"),
        pytest.param({"num_steps": 32, "temperature": 1e-3}, id="argmax"),
        pytest.param({"num_steps": 32, "temperature": 0.8}, id="slightly too cold"),
    ],
)
def test_wrong_samplers_are_far_above_the_noise_floor(joint, options):
    assert joint.total_variation(sample(joint, **options)) > 2 * joint.noise_floor(NUM_SAMPLES)


def test_an_order_by_the_probability_of_the_sampled_token_is_badly_biased(joint):
    """Why there is no such sampler here: the same conditionals, one position at a time, the surest draw first."""
    state = torch.full((NUM_SAMPLES, 3), joint.num_tokens)
    rows = torch.arange(NUM_SAMPLES)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        p = joint.conditionals[joint.code(state, joint.num_tokens + 1)]
        drawn = torch.multinomial(p.reshape(-1, 3), 1, generator=generator).reshape(-1, 3)
        confidence = p.gather(2, drawn[..., None])[..., 0].masked_fill(state < joint.num_tokens, -1)
        surest = confidence.argmax(1)
        state[rows, surest] = drawn[rows, surest]
    assert joint.total_variation(state) > 5 * joint.noise_floor(NUM_SAMPLES)


def test_inpainting_samples_the_conditional_law(joint):
    """Genes 0 and 2 given gene 1, whose count is evidence: 0, 1 and 2 in a third of the cells each."""
    nothing = joint.nothing_known(NUM_SAMPLES)
    given = nothing.gene_ids == 1
    evidence = replace(nothing, counts=(nothing.cell_index[:, None] % 3 * given).int(), visible=given)
    cells = ancestral(joint.predict, evidence, joint.tokenizer, num_steps=128, seed=0)
    p_given = torch.bincount(joint.cells[:, 1], weights=joint.p)
    law = joint.p / p_given[joint.cells[:, 1]] / 3
    assert joint.total_variation(cells, law) < joint.noise_floor(NUM_SAMPLES, law)


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_evidence_is_bit_identical_at_every_step_and_nothing_is_left_hidden(tokenizer, grid):
    predict, evidence, tokenizer = example(tokenizer=tokenizer)
    states = []
    counts = ancestral(
        predict, evidence, tokenizer, num_steps=9, grid=grid, seed=0, callback=lambda step, state: states.append(state)
    )
    assert len(states) == 9
    before = evidence
    for state in states:
        assert torch.equal(state.counts[before.visible], before.counts[before.visible])
        assert (state.visible | ~before.visible).all()  # nothing is hidden again
        assert not (state.visible & state.is_pad).any()
        assert (state.counts[~state.visible] == 0).all()
        before = state
    assert not states[-1].hidden.any()
    assert states[3].hidden.any()
    assert torch.equal(counts, states[-1].counts)
    assert counts.dtype == evidence.counts.dtype
    assert (counts >= 0).all()
    assert (counts[evidence.is_pad] == 0).all()
    assert not evidence.visible[evidence.hidden].any()


def test_last_step_samples_what_is_left_instead_of_taking_the_likeliest():
    """With one step everything is left to it: frequencies are the model's, not the mode's."""
    _, evidence, tokenizer = example(num_cells=50, num_genes=200, num_pads=0, hidden_share=1.0, tokenizer="count")
    logits = torch.tensor([0.6, 0.3, 0.1] + [1e-30] * 61).log()
    for steps in (1, 5):
        counts = ancestral(lambda gene_ids, *_: logits.expand(*gene_ids.shape, 64), evidence, tokenizer,
                           num_steps=steps, seed=0)  # fmt: skip
        observed = torch.bincount(counts.flatten(), minlength=3)
        assert stats.chisquare(observed.numpy(), np.array([0.6, 0.3, 0.1]) * counts.numel()).pvalue > 1e-3


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
def test_a_batch_of_8_equals_8_singles(tokenizer):
    predict, evidence, tokenizer = example(tokenizer=tokenizer)
    together = ancestral(predict, evidence, tokenizer, num_steps=6, seed=0)
    alone = [ancestral(predict, cell, tokenizer, num_steps=6, seed=0) for cell in evidence.split(1)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, ancestral(predict, evidence, tokenizer, num_steps=6, seed=1))


def test_extra_pads_change_no_draw():
    predict, evidence, tokenizer = example()
    wide = Evidence(
        gene_ids=torch.cat([evidence.gene_ids, torch.zeros(8, 5, dtype=torch.long)], 1),
        counts=torch.cat([evidence.counts, torch.zeros(8, 5, dtype=torch.int32)], 1),
        visible=torch.cat([evidence.visible, torch.zeros(8, 5, dtype=torch.bool)], 1),
        is_pad=torch.cat([evidence.is_pad, torch.ones(8, 5, dtype=torch.bool)], 1),
        cell_index=evidence.cell_index,
    )
    narrow = ancestral(predict, evidence, tokenizer, num_steps=6, seed=0)
    assert torch.equal(ancestral(predict, wide, tokenizer, num_steps=6, seed=0)[:, :40], narrow)


def test_the_model_is_asked_once_per_change_and_always_about_the_present_state(joint):
    """Its answer is never used for another state than the one that it was given, nor asked for twice."""
    states = [joint.nothing_known(1)]
    joint.calls.clear()
    ancestral(joint.predict, states[0], joint.tokenizer, num_steps=200, seed=3,
              callback=lambda step, state: states.append(state))  # fmt: skip
    changed = [
        joint.tokenizer.encode_visible(before.counts, before.visible)
        for before, after in pairwise(states)
        if not torch.equal(before.visible, after.visible)
    ]
    assert 1 <= len(joint.calls) <= 3
    assert len(joint.calls) == len(changed)
    for asked, present in zip(joint.calls, changed, strict=True):
        assert torch.equal(asked, present)


def test_drawn_counts_are_what_the_model_sees_next(joint):
    """Counts and tokens are those of evidence and draws together (`ExactJoint.predict` checks the counts)."""
    states, joint.calls[:] = [], []
    ancestral(joint.predict, joint.nothing_known(500), joint.tokenizer, num_steps=5, seed=0,
              callback=lambda step, state: states.append(state))  # fmt: skip
    for (before, after), tokens in zip(pairwise(states), joint.calls[1:], strict=True):
        changed = (after.visible & ~before.visible).any(1)  # the others are not asked about
        assert torch.equal(tokens, torch.where(before.visible, before.counts, 3)[changed])


def test_hidden_counts_of_a_batch_never_reach_the_model(joint):
    cells = joint.batch(joint.cells, num_pads=1)
    hidden = hide_fraction(cells.is_pad, 2 / 3, seed=0, cell_index=cells.cell_index)
    evidence = hide(cells, hidden)
    assert (evidence.counts[hidden] == 0).all()
    assert torch.equal(evidence.hidden, hidden)
    assert torch.equal(evidence.visible, ~hidden & ~cells.is_pad)
    assert torch.equal(evidence.counts[evidence.visible], cells.counts[evidence.visible])
    changed = replace(cells, counts=torch.where(hidden, 2, cells.counts), tokens=torch.where(hidden, 2, cells.tokens))
    predictions = [hide(some, hidden).predict(joint.predict, joint.tokenizer) for some in (cells, changed)]
    assert torch.equal(*predictions)


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    p = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0], dtype=torch.float64)
    u = torch.tensor([2.0**-53, 0.4999999, 0.5, 0.7499999, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(p.log().expand(6, 5), u).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "p_tail", [pytest.param(1e-9, id="below float32's 2^-24"), pytest.param(1e-13, id="below float32's 2^-40")]
)
def test_draw_reaches_tails_that_float32_does_not(p_tail):
    """The tail token sits at the top of the cumulative distribution, where float32 has a resolution of 6e-8."""
    logits = torch.tensor([1.0, p_tail]).log().expand(4, 2)
    u = 1 - p_tail * torch.tensor([0.01, 0.99, 1.01, 2], dtype=torch.float64)
    assert draw(logits, u).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("num_tokens", [2, 64, 1000])
def test_draw_always_finds_a_token_of_some_probability(num_tokens):
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(2000, num_tokens, generator=generator)
    logits[:, -1] = -torch.inf
    u = torch.full((2000,), 1 - 2.0**-53, dtype=torch.float64)
    assert (draw(logits, u) < num_tokens - 1).all()
    assert (draw(logits, 1 - u) >= 0).all()


@pytest.mark.parametrize(("margin", "token"), [(1e-13, 0), (-1e-13, 1)])
def test_the_samplers_draws_keep_all_digits(joint, margin, token):
    """A model that says p(0) = u + margin, for the very u that is drawn, decides by the 13th digit."""
    nothing = joint.nothing_known(1)
    u = keyed_uniform(Stream.TOKEN, 4, 0, nothing.cell_index[:, None], torch.arange(3))

    def predict(*_):
        return torch.stack([u + margin, 1 - u - margin, torch.zeros_like(u)], -1).log()

    assert (ancestral(predict, nothing, joint.tokenizer, num_steps=2, seed=4) == token).all()


def test_the_seed_draws_other_tokens_even_when_all_come_in_one_step(joint):
    first, second = (sample(joint, num_steps=1, seed=seed) for seed in (0, 1))
    agreement = (first == second).double().mean(0)
    by_chance = joint.conditionals[-1].square().sum(-1)
    torch.testing.assert_close(agreement, by_chance, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["rank", "quantile", "count"])
def test_drawn_tokens_become_the_counts_that_they_stand_for_in_this_cell(name):
    _, evidence, tokenizer = example(tokenizer=name)
    logits = torch.full((tokenizer.num_tokens,), -torch.inf)
    logits[45] = 0
    states = [evidence]
    ancestral(lambda gene_ids, *_: logits.expand(*gene_ids.shape, len(logits)), evidence, tokenizer, num_steps=3,
              seed=0, callback=lambda step, state: states.append(state))  # fmt: skip
    for before, after in pairwise(states):
        new = after.visible & ~before.visible
        expected = tokenizer.decode(torch.full_like(before.gene_ids, 45), before.counts, before.visible)
        assert torch.equal(after.counts[new].long(), expected[new])
    assert (states[-1].counts[evidence.hidden] != 45).any()


def test_temperature_divides_the_logits():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logits = torch.tensor([0.0, 1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        share = torch.bincount(draw(logits.expand(20_000, 3), u, temperature)) / 20_000
        torch.testing.assert_close(share, torch.softmax(logits / temperature, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"num_steps": 0}, "num-steps is 0", id="no steps"),
        pytest.param({"temperature": 0.0}, "above 0", id="temperature of 0"),
        pytest.param({"temperature": float("nan")}, "above 0", id="NaN"),
    ],
)
def test_impossible_options_are_the_users_mistake(joint, options, message):
    with pytest.raises(UserError, match=message):
        ancestral(joint.predict, joint.nothing_known(1), joint.tokenizer, **{"seed": 0, **options})
