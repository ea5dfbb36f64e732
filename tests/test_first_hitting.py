"""The first-hitting sampler: one position at a time in a uniformly random order, or groups of that order."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from exact_joint import ExactJoint
from scipy import stats
from test_ancestral import example
from test_samplers import NUM_SAMPLES, states_of

from mdsc.sampling.ancestral import time_grid
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=4)


def group_sizes(n: int, num_steps: int, grid: str) -> list[int]:
    visible = [max(k, round(n * (1 - s))) for k, s in enumerate(time_grid(num_steps, grid))]
    return [after - before for before, after in pairwise(visible)]


def law(joint: ExactJoint, sizes: list[int]) -> torch.Tensor:
    """In each step every set of so many hidden positions is as likely as any other."""
    hidden = joint.states == joint.num_tokens
    steps = []
    for size in sizes:
        fits = (joint.sets.sum(1) == size) & ~(joint.sets & ~hidden[:, None]).any(-1)
        steps.append(fits.double() / fits.sum(1, keepdim=True).clamp(min=1))
    return joint.law_of(steps)


@pytest.mark.parametrize(
    ("num_steps", "grid", "sizes"),
    [
        pytest.param(2, "cosine", [1, 3], id="2 cosine steps"),
        pytest.param(2, "uniform", [2, 2], id="2 uniform steps"),
        pytest.param(3, "cosine", [1, 1, 2], id="3 cosine steps"),
        pytest.param(4, "uniform", [1, 1, 1, 1], id="as many steps as positions"),
    ],
)
def test_few_steps_have_the_law_of_random_groups(joint, num_steps, grid, sizes):
    assert group_sizes(4, num_steps, grid) == sizes
    options = SamplerOptions(sampler="first_hitting", num_steps=num_steps, grid=grid)
    cells = draw_hidden(joint.predict, joint.nothing_known(NUM_SAMPLES), joint.tokenizer, options, seed=0)
    expected = law(joint, sizes)
    assert joint.total_variation(cells, expected) < joint.noise_floor(NUM_SAMPLES, expected)
    other = law(joint, [3, 1])
    assert joint.total_variation(cells, other) > 2 * joint.noise_floor(NUM_SAMPLES, other)


def test_one_at_a_time_is_the_joint_itself(joint):
    torch.testing.assert_close(law(joint, [1, 1, 1, 1]), joint.p)


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 36, 37, 38, 200])
def test_each_cell_reveals_as_many_as_the_grid_says(grid, num_steps):
    """37 hidden positions: never more than a step's share, one at a time where the steps suffice, none wasted."""
    predict, evidence, tokenizer = example(num_cells=3, num_genes=40, num_pads=3, hidden_share=1.0)
    options = SamplerOptions(sampler="first_hitting", num_steps=num_steps, grid=grid)
    states = states_of(predict, evidence, tokenizer, options)
    revealed = [(after.visible & ~before.visible).sum(1) for before, after in pairwise(states)]
    assert all((sizes == sizes[0]).all() for sizes in revealed)
    sizes = [int(sizes[0]) for sizes in revealed]
    if num_steps >= 37:
        assert sizes == [1] * 37 + [0] * (num_steps - 37)
    else:
        assert sizes == group_sizes(37, num_steps, grid)
        assert min(sizes) >= 1
        assert sum(sizes) == 37


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 37, 409, 1000, 20_001])
def test_no_step_is_wasted_while_positions_are_left(n, grid):
    for num_steps in (1, 2, 3, 5, 8, 16, 32, 33, 64, 100, 1024):
        if num_steps <= n:
            assert min(group_sizes(n, num_steps, grid)) >= 1
            assert sum(group_sizes(n, num_steps, grid)) == n


def test_every_order_of_a_cell_is_as_likely():
    joint = ExactJoint(length=3)
    options = SamplerOptions(sampler="first_hitting", num_steps=3)
    states = states_of(joint.predict, joint.nothing_known(6000), joint.tokenizer, options)
    when = sum(torch.where(state.visible, 0, 1) for state in states[1:])  # step at which a position is drawn
    orders = [tuple(row) for row in when.tolist()]
    observed = [orders.count(order) for order in permutations(range(3))]
    assert sum(observed) == 6000
    assert stats.chisquare(observed).pvalue > 1e-3


def test_cells_with_other_numbers_of_hidden_positions_have_groups_of_their_own():
    predict, evidence, tokenizer = example(num_cells=2, num_pads=0, hidden_share=1.0)
    evidence.visible[0, :20] = True
    options = SamplerOptions(sampler="first_hitting", num_steps=4, grid="uniform")
    states = states_of(predict, evidence, tokenizer, options)
    left = torch.stack([state.hidden.sum(1) for state in states])
    assert left.tolist() == [[20, 40], [15, 30], [10, 20], [5, 10], [0, 0]]


def test_half_of_a_position_rounds_to_even():
    """As `round` and torch do, so that what the documentation says is what happens."""
    assert group_sizes(2, 2, "uniform") == [1, 1]
    assert group_sizes(5, 2, "uniform") == [2, 3]
    assert math.isclose(time_grid(2, "uniform")[1], 0.5)
