"""The remasking sampler: its shares, its law in a few steps, and what becomes of it in many."""

import math
from itertools import pairwise

import pytest
import torch
from exact_joint import ExactJoint
from test_ancestral import example
from test_samplers import NUM_SAMPLES, states_of

from mdsc.sampling.ancestral import time_grid
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden

RULES = [("cap", 0.1), ("cap", 1.0), ("rescale", 0.2), ("rescale", 1.0)]


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=3)


def remdm(num_steps: int, remask: str, eta: float, grid: str = "cosine") -> SamplerOptions:
    return SamplerOptions(sampler="remdm", num_steps=num_steps, remask=remask, remask_strength=eta, grid=grid)


def chances(num_steps: int, remask: str, eta: float, grid: str) -> list[tuple[float, float]]:
    """(reveal, hide again) of each step, by the words of the paper."""
    found = []
    for t, s in pairwise(time_grid(num_steps, grid)):
        alpha_t, alpha_s = 1 - t, 1 - s
        most = 1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t)
        sigma = min(eta, most) if remask == "cap" else eta * most
        found.append(((alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t), sigma))
    return found


def law(joint: ExactJoint, num_steps: int, remask: str, eta: float, grid: str = "cosine") -> torch.Tensor:
    return joint.law_of(joint.sets_by_chance(*pair) for pair in chances(num_steps, remask, eta, grid))


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize(("remask", "eta"), RULES)
def test_few_steps_have_the_law_that_few_steps_have(joint, remask, eta, grid):
    options = remdm(5, remask, eta, grid)
    cells = draw_hidden(joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, options, seed=0)
    expected = law(joint, 5, remask, eta, grid)
    assert joint.total_variation(cells, expected) < joint.noise_floor(NUM_SAMPLES, expected)


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize(("remask", "eta"), [*RULES, ("cap", 0.0), ("rescale", 0.0)])
def test_the_visible_share_is_alpha_and_sigma_of_it_is_hidden_again(remask, eta, grid):
    predict, evidence, tokenizer = example(num_cells=50, num_genes=400, num_pads=0, hidden_share=1.0)
    states = states_of(predict, evidence, tokenizer, remdm(8, remask, eta, grid))
    number = evidence.counts.numel()
    for (before, after), s, (_, sigma) in zip(
        pairwise(states), time_grid(8, grid)[1:], chances(8, remask, eta, grid), strict=True
    ):
        share = after.visible.double().mean().item()
        assert abs(share - (1 - s)) <= 4.5 * math.sqrt(s * (1 - s) / number)
        was_visible = before.visible.sum().item()
        again = (before.visible & ~after.visible).sum().item()
        assert abs(again - sigma * was_visible) <= 4.5 * math.sqrt(sigma * (1 - sigma) * was_visible)


def test_hiding_nothing_again_is_ancestral_sampling(joint):
    """The same positions at every step; of tokens, which are keyed by step here, the same law."""
    predict, evidence, tokenizer = example()
    ancestral = SamplerOptions(sampler="ancestral", num_steps=6)
    for remask in ("cap", "rescale"):
        pairs = zip(
            states_of(predict, evidence, tokenizer, remdm(6, remask, 0.0)),
            states_of(predict, evidence, tokenizer, ancestral),
            strict=True,
        )
        assert all(torch.equal(one.visible, other.visible) for one, other in pairs)
        torch.testing.assert_close(law(joint, 6, remask, 0.0), joint.law_of_ancestral(time_grid(6, "cosine")))


def test_evidence_is_never_hidden_even_where_all_else_is():
    """rescale with eta 1 hides everything that it may, in every step of the first half of time."""
    predict, evidence, tokenizer = example()
    states = states_of(predict, evidence, tokenizer, remdm(10, "rescale", 1.0, "uniform"))
    hidden_again = [(before.visible & ~after.visible).any() for before, after in pairwise(states)]
    assert any(hidden_again)
    for state in states:
        assert state.visible[evidence.visible].all()
        assert torch.equal(state.counts[evidence.visible], evidence.counts[evidence.visible])


def test_a_position_that_is_drawn_again_is_drawn_anew(joint):
    """By the same number as before it would mostly get its old count."""
    options = remdm(40, "cap", 0.3, "uniform")
    states = states_of(joint.predict, joint.nothing_known(2000), joint.tokenizer, options)
    last = torch.full_like(states[0].counts, -1)
    same, expected, number = 0, 0.0, 0
    for before, after in pairwise(states):
        new = after.visible & ~before.visible
        again = new & (last >= 0)
        code = joint.code(torch.where(before.visible, before.counts, 3), 4)
        p = joint.conditionals[code].gather(2, last.clamp(min=0).long()[..., None])[..., 0]
        same += int((after.counts == last)[again].sum())
        expected += float(p[again].sum())
        number += int(again.sum())
        last = torch.where(new, after.counts, last)
    assert number > 2000
    assert abs(same - expected) < 4.5 * (number / 4) ** 0.5


def test_many_steps_reach_the_joint_as_fast_as_the_documentation_says(joint):
    """Exactly: positions drawn in the same step are the one approximation, and remasking makes it more often."""

    def distances(remask, eta):
        laws = [law(joint, steps, remask, eta(steps)) for steps in (32, 128, 512)]
        return [float((law - joint.p).abs().sum() / 2) for law in laws]

    without = distances("cap", lambda steps: 0.0)
    shrinking = distances("cap", lambda steps: 2 / steps)
    for few, many in (*pairwise(without), *pairwise(shrinking)):
        assert few / many == pytest.approx(4, rel=0.1)
    for remask in ("cap", "rescale"):
        fixed = distances(remask, lambda steps: 0.5)
        for few, many in pairwise(fixed):
            assert few / many == pytest.approx(2, rel=0.15)
        assert all(some > 2 * other for some, other in zip(fixed, without, strict=True))
