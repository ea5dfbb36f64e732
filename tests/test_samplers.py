"""What all samplers keep: the evidence, independence of a batch, the number of passes, and the law where they can."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from exact_joint import ExactJoint
from test_ancestral import example

from mdsc.diffusion.evidence import Evidence
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.errors import UserError
from mdsc.sampling.options import DEFAULTS, SamplerOptions
from mdsc.sampling.samplers import SAMPLERS, draw_hidden

NUM_SAMPLES = 20_000
VARIANTS = {
    "ancestral": {},
    "ancestral, uniform": {"sampler": "ancestral", "grid": "uniform"},
    "first_hitting": {},
    "first_hitting, uniform": {"sampler": "first_hitting", "grid": "uniform"},
    "entropy_bounded": {},
    "entropy_bounded, 2 nats": {"sampler": "entropy_bounded", "entropy_budget": 2.0},
    "remdm, cap": {"sampler": "remdm", "remask_strength": 0.3},
    "remdm, rescale": {"sampler": "remdm", "remask": "rescale", "remask_strength": 0.5},
    "one_shot": {},
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)
UNBIASED = {
    "ancestral": {"num_steps": 128},
    "first_hitting": {"num_steps": 3},
    "first_hitting, uniform": {"num_steps": 64, "grid": "uniform"},
    "entropy_bounded": {"num_steps": 3, "entropy_budget": 0.0},
    "remdm, cap": {"num_steps": 128, "remask_strength": 2 / 128},
    "remdm, rescale": {"num_steps": 128, "remask": "rescale", "remask_strength": 1 / 128},
}


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=3)


def options(variant: str, **changes) -> SamplerOptions:
    return SamplerOptions(**{"sampler": variant.partition(",")[0]} | VARIANTS[variant] | changes)


def unbiased(variant: str, **changes) -> SamplerOptions:
    return SamplerOptions(sampler=variant.partition(",")[0], **UNBIASED[variant] | changes)


def states_of(predict, evidence: Evidence, tokenizer, options: SamplerOptions, seed: int = 0) -> list[Evidence]:
    """The evidence, and what is visible after each step."""
    states = [evidence]
    counts = draw_hidden(
        predict, evidence, tokenizer, options, seed=seed, callback=lambda step, state: states.append(state)
    )
    assert torch.equal(counts, states[-1].counts)
    return states


def test_every_sampler_is_tested():
    assert {options(variant).sampler for variant in VARIANTS} == SAMPLERS.keys()
    assert {options(variant).sampler for variant in UNBIASED} == SAMPLERS.keys() - {"one_shot"}


@pytest.mark.parametrize("variant", UNBIASED)
def test_the_law_is_the_joints_to_the_noise_floor(joint, variant):
    cells = draw_hidden(joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, unbiased(variant), seed=0)
    assert joint.total_variation(cells) < joint.noise_floor(NUM_SAMPLES)


@pytest.mark.parametrize("variant", UNBIASED)
def test_a_slightly_low_temperature_moves_the_law(joint, variant):
    tempered = unbiased(variant, temperature=0.8)
    cells = draw_hidden(joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, tempered, seed=0)
    assert joint.total_variation(cells) > 2 * joint.noise_floor(NUM_SAMPLES)


@pytest.mark.parametrize("variant", UNBIASED)
def test_filling_in_follows_the_conditional_law_with_pads(joint, variant):
    """Genes 0 and 2 given gene 1, whose count is evidence: 0, 1 and 2 in a third of the cells each."""
    batch = joint.batch(torch.zeros(NUM_SAMPLES, 3, dtype=torch.long), num_pads=2)
    given = (batch.gene_ids == 1) & ~batch.is_pad
    counts = (batch.cell_index[:, None] % 3 * given).int()
    evidence = Evidence(batch.gene_ids, counts, given, batch.is_pad, batch.cell_index)
    cells = draw_hidden(joint.predict, evidence, joint.tokenizer, unbiased(variant), seed=0)
    p_given = torch.bincount(joint.cells[:, 1], weights=joint.p)
    law = joint.p / p_given[joint.cells[:, 1]] / 3
    assert joint.total_variation(cells[:, :3], law) < joint.noise_floor(NUM_SAMPLES, law)
    assert (cells[:, 3:] == 0).all()


def test_all_at_once_is_the_product_of_the_marginals_and_far_from_the_joint(joint):
    cells = draw_hidden(
        joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, SamplerOptions(sampler="one_shot"), seed=0
    )
    law = joint.law_of([joint.sets_by_chance(1.0)])
    assert joint.total_variation(cells, law) < joint.noise_floor(NUM_SAMPLES, law)
    assert joint.total_variation(cells) > 10 * joint.noise_floor(NUM_SAMPLES)


@EVERY
@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
def test_evidence_is_bit_identical_at_every_step_and_nothing_is_left_hidden(variant, tokenizer):
    predict, evidence, tokenizer = example(tokenizer=tokenizer)
    chosen = options(variant, num_steps=7)
    states = states_of(predict, evidence, tokenizer, chosen)
    assert len(states) == 1 + (1 if chosen.sampler == "one_shot" else 7)
    for before, state in pairwise(states):
        assert state.visible[evidence.visible].all()
        assert torch.equal(state.counts[evidence.visible], evidence.counts[evidence.visible])
        assert not (state.visible & state.is_pad).any()
        assert (state.counts[~state.visible] == 0).all()
        still = before.visible & state.visible
        assert torch.equal(state.counts[still], before.counts[still])
        if chosen.sampler != "remdm":
            assert torch.equal(still, before.visible)  # nothing is hidden again
    assert not states[-1].hidden.any()
    counts = states[-1].counts
    assert counts.dtype == evidence.counts.dtype
    assert (counts >= 0).all()
    assert (counts[evidence.is_pad] == 0).all()
    assert (counts[evidence.hidden] > 0).any()
    assert not evidence.visible[evidence.hidden].any()  # what was given is not written into


@EVERY
@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
def test_a_batch_of_8_equals_8_singles(variant, tokenizer):
    predict, evidence, tokenizer = example(tokenizer=tokenizer)
    chosen = options(variant, num_steps=6)
    together = draw_hidden(predict, evidence, tokenizer, chosen, seed=0)
    alone = [draw_hidden(predict, cell, tokenizer, chosen, seed=0) for cell in evidence.split(1)]
    assert torch.equal(together, torch.cat(alone))


@EVERY
def test_cells_that_need_other_numbers_of_steps_share_a_batch(variant):
    """One has nothing hidden, one a single position, one all of them."""
    predict, evidence, tokenizer = example()
    visible = evidence.visible.clone()
    visible[0] = ~evidence.is_pad[0]
    visible[1] = ~evidence.is_pad[1] & (evidence.gene_ids[1] != 5)
    visible[2] = False
    evidence = replace(evidence, visible=visible, counts=evidence.counts * visible)
    chosen = options(variant, num_steps=6)
    together = draw_hidden(predict, evidence, tokenizer, chosen, seed=0)
    alone = [draw_hidden(predict, cell, tokenizer, chosen, seed=0) for cell in evidence.split(1)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[0], evidence.counts[0])


@EVERY
def test_neither_the_order_of_genes_nor_pads_change_a_draw(variant):
    predict, evidence, tokenizer = example()
    chosen = options(variant, num_steps=6)
    drawn = draw_hidden(predict, evidence, tokenizer, chosen, seed=0)
    order = torch.from_numpy(np.random.default_rng(1).permutation(evidence.counts.shape[1]))
    places = ("gene_ids", "counts", "visible", "is_pad")
    mixed = replace(evidence, **{name: getattr(evidence, name)[:, order] for name in places})
    assert torch.equal(draw_hidden(predict, mixed, tokenizer, chosen, seed=0), drawn[:, order])
    more = {"gene_ids": 0, "counts": 0, "visible": False, "is_pad": True}
    wide = {
        name: torch.cat([torch.full_like(getattr(evidence, name)[:, :5], value), getattr(evidence, name)], 1)
        for name, value in more.items()
    }
    assert torch.equal(draw_hidden(predict, replace(evidence, **wide), tokenizer, chosen, seed=0)[:, 5:], drawn)


@EVERY
def test_equal_genes_are_drawn_in_no_order_of_theirs(variant):
    """A model that says the same of all genes: which come first must not be told by where they stand."""
    _, evidence, tokenizer = example(num_cells=200, num_pads=0, hidden_share=1.0)
    logits = torch.linspace(1, -1, tokenizer.num_tokens)

    def predict(gene_ids, *_):
        return logits.expand(*gene_ids.shape, len(logits))

    states = states_of(predict, evidence, tokenizer, options(variant, num_steps=6))
    half = next(state for state in states[1:] if state.visible.any())
    share = half.visible.double().mean(0)
    error = (share.mean() * (1 - share.mean()) / len(evidence)).sqrt()
    assert ((share - share.mean()).abs() <= 4.5 * error).all()


@EVERY
def test_seed_and_draw_index_draw_anew_and_other_cells_differ(variant):
    predict, evidence, tokenizer = example(hidden_share=1.0)
    chosen = options(variant, num_steps=6)
    first = draw_hidden(predict, evidence, tokenizer, chosen, seed=0)
    assert torch.equal(first, draw_hidden(predict, evidence, tokenizer, chosen, seed=0, draw_index=0))
    assert not torch.equal(first, draw_hidden(predict, evidence, tokenizer, chosen, seed=1))
    assert not torch.equal(first, draw_hidden(predict, evidence, tokenizer, chosen, seed=0, draw_index=1))
    assert len(first.unique(dim=0)) == len(first)


@pytest.mark.parametrize("variant", ["ancestral", "first_hitting", "entropy_bounded", "one_shot"])
def test_order_and_tokens_are_drawn_independently_of_each_other(joint, variant):
    """Draws that shared a number would tie what is drawn to when."""
    states = states_of(
        joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, options(variant, num_steps=5), 5
    )
    first = next(state for state in states[1:] if state.visible.any())
    for position in range(3):
        drawn = first.counts[first.visible[:, position], position]
        if len(drawn):
            p = joint.conditionals[-1, position]
            frequency = torch.bincount(drawn, minlength=3) / len(drawn)
            assert ((frequency - p).abs() <= 4.5 * (p * (1 - p) / len(drawn)).sqrt()).all()


@EVERY
def test_the_model_is_asked_about_cells_that_change_and_always_about_their_present_state(joint, variant):
    """Its answer is never used for another state than the one that it was given, nor asked for in vain."""
    joint.calls.clear()
    states = states_of(joint.predict, joint.nothing_known(50), joint.tokenizer, options(variant, num_steps=20), 3)
    asked = []
    for before, after in pairwise(states):
        drawn = (after.visible & ~before.visible).any(dim=1)
        # A position that is hidden again as another is drawn was visible to that draw.
        if drawn.any():
            asked.append(joint.tokenizer.encode_visible(before.counts, before.visible)[drawn])
    assert len(asked) == len(joint.calls)
    for expected, tokens in zip(asked, joint.calls, strict=True):
        assert torch.equal(expected, tokens)


@EVERY
@pytest.mark.parametrize("num_steps", [1, 2, 5, 60])
def test_num_steps_bounds_the_passes_of_a_cell(variant, num_steps):
    predict, evidence, tokenizer = example(num_cells=1, hidden_share=1.0)
    calls = 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        return predict(*arguments)

    draw_hidden(counted, evidence, tokenizer, options(variant, num_steps=num_steps), seed=0)
    assert 1 <= calls <= num_steps


@EVERY
def test_nothing_hidden_asks_nothing(joint, variant):
    cells = joint.batch(joint.cells)
    known = replace(joint.nothing_known(len(joint.cells)), counts=cells.counts, visible=~cells.is_pad)
    joint.calls.clear()
    assert torch.equal(draw_hidden(joint.predict, known, joint.tokenizer, options(variant), seed=0), cells.counts)
    assert not joint.calls


@EVERY
@pytest.mark.parametrize(("margin", "token"), [(1e-13, 0), (-1e-13, 1)])
def test_the_draws_keep_all_digits(joint, variant, margin, token):
    """A model that says p(0) = u + margin, for the very u that is drawn, decides by the 13th digit."""
    nothing = joint.nothing_known(1)
    step = [0] if variant.startswith("remdm") else []
    u = keyed_uniform(Stream.TOKEN, 4, 0, *step, nothing.cell_index[:, None], torch.arange(3))

    def predict(*_):
        return torch.stack([u + margin, 1 - u - margin, torch.zeros_like(u)], -1).log()

    drawn = draw_hidden(predict, nothing, joint.tokenizer, options(variant, num_steps=1), seed=4)
    assert (drawn == token).all()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"sampler": "first_hitting", "entropy_budget": 1.0}, "--entropy-budget is for --sampler entropy_bounded"),
        ({"sampler": "entropy_bounded", "grid": "cosine"}, "--grid is for --sampler ancestral or first_hitting or"),
        ({"sampler": "one_shot", "grid": "uniform"}, "--sampler one_shot does not read it"),
        ({"remask": "cap", "sampler": "ancestral"}, "--remask is for --sampler remdm"),
        ({"remask_strength": 0.0, "sampler": "ancestral"}, "--remask-strength is for --sampler remdm"),
        ({"sampler": "entropy_bounded", "entropy_budget": -0.1}, "--entropy-budget is -0.1"),
        ({"sampler": "entropy_bounded", "entropy_budget": float("nan")}, "--entropy-budget is nan"),
        ({"sampler": "remdm", "remask_strength": 1.5}, "--remask-strength is 1.5"),
        ({"sampler": "remdm", "remask_strength": float("nan")}, "--remask-strength is nan"),
    ],
)
def test_impossible_options_are_the_users_mistake(chosen, words):
    with pytest.raises(UserError, match=words):
        SamplerOptions(**chosen)


def test_what_is_recorded_is_what_was_read():
    assert SamplerOptions(sampler="one_shot").record() == {"sampler": "one_shot", "num_steps": 32, "temperature": 1.0}
    remdm = SamplerOptions(sampler="remdm", remask="rescale", num_steps=3)
    assert remdm.record() == {
        "sampler": "remdm",
        "num_steps": 3,
        "grid": "cosine",
        "temperature": 1.0,
        "remask": "rescale",
        "remask_strength": 0.1,
    }
    entropy = SamplerOptions(sampler="entropy_bounded", entropy_budget=0.5)
    assert entropy.record() == {
        "sampler": "entropy_bounded",
        "num_steps": 32,
        "temperature": 1.0,
        "entropy_budget": 0.5,
    }
    assert SamplerOptions(**DEFAULTS.record()).resolved() == DEFAULTS.resolved()
