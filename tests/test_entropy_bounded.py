"""The entropy-bounded sampler: what it draws at once, and what that does to the law."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from exact_joint import ExactJoint
from test_ancestral import example
from test_samplers import NUM_SAMPLES, states_of

from mdsc.sampling.entropy_bounded import entropy, surest
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=3)


def taken(h: dict[int, float], gamma: float) -> list[int]:
    """Places, by the words of the paper: the largest k with sum - max <= gamma among the k lowest."""
    order = sorted(h, key=h.get)
    best = 1
    for k in range(1, len(order) + 1):
        lowest = [h[place] for place in order[:k]]
        if sum(lowest) - max(lowest) <= gamma:
            best = k
    return order[:best]


def law(joint: ExactJoint, num_steps: int, budget: float | None) -> torch.Tensor:
    steps = []
    for left in range(num_steps, 0, -1):
        chance = torch.zeros(len(joint.states), len(joint.sets), dtype=torch.float64)
        for row, state in enumerate(joint.states):
            h = {
                place: -sum(p * math.log(p) for p in joint.conditionals[row, place].tolist() if p > 0)
                for place in (state == joint.num_tokens).nonzero().flatten().tolist()
            }
            gamma = math.inf if left == 1 else sum(h.values()) / left if budget is None else budget
            now = torch.tensor([place in taken(h, gamma) if h else False for place in range(joint.length)])
            chance[row, (joint.sets == now).all(1)] = 1
        steps.append(chance)
    return joint.law_of(steps)


@pytest.mark.parametrize(
    ("num_steps", "budget"),
    [(2, None), (3, None), (8, None), (2, 0.0), (3, 0.0), (3, 0.5), (2, 0.9), (8, 0.9), (8, 1.5), (1, 0.0)],
)
def test_the_law_is_that_of_the_rule(joint, num_steps, budget):
    options = SamplerOptions(sampler="entropy_bounded", num_steps=num_steps, entropy_budget=budget)
    cells = draw_hidden(joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, options, seed=0)
    expected = law(joint, num_steps, budget)
    assert joint.total_variation(cells, expected) < joint.noise_floor(NUM_SAMPLES, expected)


def test_a_budget_of_nothing_is_the_joint_itself_and_others_are_not(joint):
    torch.testing.assert_close(law(joint, 3, 0.0), joint.p)
    for num_steps, budget in ((2, 0.0), (3, 1.5), (2, None)):
        assert (law(joint, num_steps, budget) - joint.p).abs().sum() / 2 > 2 * joint.noise_floor(NUM_SAMPLES)


def test_entropy_is_that_of_the_law_that_is_drawn_from():
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    expected = [1.5 * math.log(2), 0.0, math.log(3)]
    assert entropy(p.log().float(), 1.0).tolist() == pytest.approx(expected, abs=1e-6)
    cold = torch.softmax(p.log() / 0.5, -1)
    expected = [float(-(row * row.log()).nansum()) for row in cold]
    assert entropy(p.log().float(), 0.5).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.31, 1.0, 100.0])
def test_surest_takes_what_the_paper_says(gamma):
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(20, 9, generator=generator, dtype=torch.float64) ** 3
    h[torch.rand(20, 9, generator=generator) < 0.4] = torch.inf
    h[:, 4] = 0.01
    now = surest(h, torch.rand(20, 9, generator=generator, dtype=torch.float64), 5, gamma)
    for row, chosen in zip(h.tolist(), now, strict=True):
        known = {place: value for place, value in enumerate(row) if value < math.inf}
        assert sorted(taken(known, gamma)) == chosen.nonzero().flatten().tolist()


def test_the_budget_is_per_cell_and_by_default_what_is_hidden_over_the_steps_left():
    h = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    tie = torch.rand(2, 4, dtype=torch.float64)
    # Without the largest of them .1 + .2 <= 1/3 < .1 + .2 + .3, and ten times that.
    assert surest(h, tie, 3, None).tolist() == [[True, True, True, False]] * 2
    assert surest(h, tie, 3, 0.3 + 1e-9).tolist() == [[True, True, True, False], [True, False, False, False]]
    assert surest(h, tie, 1, 0.0).all()


def test_certain_positions_cost_no_step_of_their_own():
    """400 genes that are zero for sure and 6 that are not, one at a time: six passes, where 406 are hidden."""
    _, evidence, tokenizer = example(num_cells=4, num_genes=406, num_pads=0, hidden_share=1.0)
    sure = torch.full((tokenizer.num_tokens,), -torch.inf)
    sure[0] = 0
    calls = []

    def predict(gene_ids, tokens, *_):
        calls.append(len(tokens))
        return torch.where((gene_ids < 400)[..., None], sure, torch.zeros(tokenizer.num_tokens))

    options = SamplerOptions(sampler="entropy_bounded", num_steps=1000, entropy_budget=0.0)
    states = states_of(predict, evidence, tokenizer, options)
    assert calls == [4] * 6
    assert (states[1].visible.sum(1) == 401).all()
    assert (states[-1].counts[:, :400] == 0).all()


def test_order_is_by_entropy_and_never_by_what_was_drawn():
    """Genes that are zero with .9 and genes that have one of two counts: the first are surer, whatever is drawn.

    By the probability of the sampled token their zeros would come before all, and their other counts after all.
    """
    _, evidence, tokenizer = example(num_cells=100, num_genes=60, num_pads=0, hidden_share=1.0, tokenizer="count")
    rare, even = torch.full((2, tokenizer.num_tokens), -torch.inf)
    rare[:2] = torch.tensor([0.9, 0.1]).log()
    even[1:3] = torch.tensor([0.5, 0.5]).log()

    def predict(gene_ids, *_):
        return torch.where((gene_ids < 30)[..., None], rare, even)

    options = SamplerOptions(sampler="entropy_bounded", num_steps=100, entropy_budget=0.4)
    states = states_of(predict, evidence, tokenizer, options)
    for before, after in pairwise(states):
        new = after.visible & ~before.visible
        if new[:, 30:].any():
            assert before.visible[new[:, 30:].any(1)][:, :29].all()
    drawn = states[5].counts[:, :30][states[5].visible[:, :30]]
    assert abs((drawn > 0).double().mean() - 0.1) < 4.5 * (0.1 * 0.9 / len(drawn)) ** 0.5


def test_equal_entropies_are_ordered_as_in_the_cell_by_itself():
    """Also beside cells that have nothing left to be drawn: all tokens of all genes are equally likely here."""
    _, evidence, tokenizer = example(num_cells=4)
    evidence = replace(evidence, visible=evidence.visible | (evidence.cell_index < 2)[:, None] & ~evidence.is_pad)

    def predict(gene_ids, *others):
        return torch.zeros(*gene_ids.shape, tokenizer.num_tokens)

    options = SamplerOptions(sampler="entropy_bounded", num_steps=4)
    together = states_of(predict, evidence, tokenizer, options)
    for cell in (2, 3):
        alone = states_of(predict, evidence.select(slice(cell, cell + 1)), tokenizer, options)
        for state, single in zip(together, alone, strict=True):
            assert torch.equal(state.visible[cell : cell + 1], single.visible)
            assert torch.equal(state.counts[cell : cell + 1], single.counts)
