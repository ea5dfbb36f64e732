"""Which weights decay, the learning rate's shape, and steps that bad gradients cannot take."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from mdsc.config.schema import OptimConfig
from mdsc.errors import UserError
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.training.batch_shares import micro_batch_size
from mdsc.training.ema import Ema
from mdsc.training.finite_guard import PATIENCE, FiniteGuard, is_admitted
from mdsc.training.optimizer import (
    OUTPUT_BIAS_RATE,
    clip_gradients,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
    step_if,
)

ONE_PHASE = OptimConfig(max_steps=100, warmup_steps=10, learning_rate=2.0, final_lr_fraction=0.1)
TWO_PHASES = replace(ONE_PHASE, pathway_steps=40, pathway_learning_rate=3.0)
DECAYS = OptimConfig(weight_decay=0.5, gene_weight_decay=0.25)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.free = nn.Parameter(torch.ones(5, 3))


def test_only_matrices_of_linear_layers_decay():
    model = Parts()
    decayed, rest = parameter_groups(model, DECAYS)
    assert [id(parameter) for parameter in decayed["params"]] == [id(model.linear.weight)]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_gene_vectors_decay_at_their_own_rate_and_the_output_bias_learns_slowly():
    model = MdscModel(MdscConfig(num_genes=9, num_tokens=4, hidden_size=8, num_layers=1, num_heads=2, state_size=3))
    groups = parameter_groups(model, DECAYS)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == len(list(model.parameters()))
    for vectors in (model.cell_state.gene_in, model.cell_state.gene_out):
        assert (of[id(vectors.weight)]["weight_decay"], of[id(vectors.weight)]["rate"]) == (0.25, 1.0)
    assert of[id(model.gene_embedding.weight)]["weight_decay"] == 0.0
    assert of[id(model.output_bias.weight)]["weight_decay"] == 0.0
    optimizer = make_optimizer(model, DECAYS)
    set_learning_rate(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.2 * OUTPUT_BIAS_RATE}
    assert next(group["lr"] for group in optimizer.param_groups if group["params"][0] is model.output_bias.weight) < 0.2


def test_a_table_that_is_also_a_head_does_not_decay_twice():
    model = Parts()
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.table.weight
    groups = parameter_groups(model, DECAYS)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("config", "step", "expected"),
    [
        pytest.param(ONE_PHASE, 0, 0.2, id="first"),
        pytest.param(ONE_PHASE, 9, 2.0, id="warm"),
        pytest.param(ONE_PHASE, 10, 2.0, id="peak"),
        pytest.param(ONE_PHASE, 55, 1.1, id="half-way"),
        pytest.param(ONE_PHASE, 100, 0.2, id="end"),
        pytest.param(TWO_PHASES, 0, 0.3, id="pathway-first"),
        pytest.param(TWO_PHASES, 39, 3.0, id="pathway-held"),
        pytest.param(TWO_PHASES, 40, 0.2, id="warm-up-restarts"),
        pytest.param(TWO_PHASES, 50, 2.0, id="second-peak"),
        pytest.param(TWO_PHASES, 75, 1.1, id="second-half-way"),
        pytest.param(TWO_PHASES, 100, 0.2, id="second-end"),
        pytest.param(OptimConfig(max_steps=20, pathway_steps=40, warmup_steps=0), 20, 5e-5, id="pathway-only-run"),
        pytest.param(OptimConfig(max_steps=5, warmup_steps=0), 0, 1e-3, id="no-warm-up"),
    ],
)
def test_learning_rate(config: OptimConfig, step: int, expected: float):
    assert learning_rate(step, config) == pytest.approx(expected)


def test_a_bad_step_leaves_weights_and_moments_alone():
    good, guarded = (nn.Linear(3, 2) for _ in range(2))
    guarded.load_state_dict(good.state_dict())
    optimizers = [make_optimizer(model, OptimConfig()) for model in (good, guarded)]
    for bad in (False, True, False):
        for model, optimizer in zip((good, guarded), optimizers, strict=True):
            if bad and model is good:
                continue  # the reference never hears of the bad step
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if bad else 1.0)
            step_if(torch.tensor(not bad), optimizer)
    for mine, reference in zip(guarded.parameters(), good.parameters(), strict=True):
        assert torch.equal(mine, reference)
        for name, moment in optimizers[0].state[reference].items():
            assert torch.equal(optimizers[1].state[mine][name], moment)


@pytest.mark.parametrize(("clip_norm", "scale"), [(1.0, 0.2), (10.0, 1.0)])
def test_gradients_are_scaled_to_a_norm_that_all_weights_share(clip_norm: float, scale: float):
    weights = [nn.Parameter(torch.zeros(size)) for size in (2, 3, 1)]
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0]), None]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if gradient is None else gradient.clone()
    assert clip_gradients(iter(weights), clip_norm) == 5
    for weight, gradient in zip(weights[:2], gradients[:2], strict=True):
        torch.testing.assert_close(weight.grad, scale * gradient)
    assert weights[2].grad is None


def test_a_weight_without_gradient_gets_no_state():
    model = Parts()
    optimizer = make_optimizer(model, OptimConfig())
    model.linear.weight.grad = torch.ones(3, 3)
    before = model.table.weight.clone()
    step_if(torch.tensor(True), optimizer)
    assert list(optimizer.state) == [model.linear.weight]
    assert torch.equal(model.table.weight, before)


def test_the_guard_counts_and_stops_after_ten_in_a_row():
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    for loss, norm in [(bad, good), (good, good), (good, torch.tensor(math.inf))]:
        assert bool(is_admitted(loss, norm)) == bool(loss.isfinite() & norm.isfinite())
    guard = FiniteGuard()
    for step, is_finite in enumerate([False] * (PATIENCE - 1) + [True] + [False] * (PATIENCE - 1), start=1):
        guard.heard(step, is_finite)
    assert (guard.skipped, guard.in_a_row) == (2 * PATIENCE - 2, PATIENCE - 1)
    with pytest.raises(UserError, match=r"step 20.*not finite 10 times in a row.*the last was cell 3"):
        guard.heard(2 * PATIENCE, False, "cell 3")


@pytest.mark.parametrize("on_host", [False, True])
def test_ema_follows_the_warmed_up_decay(on_host: bool):
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, decay=0.3, on_host=on_host)
    start = expected = model.weight.item()
    for number, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3], start=1):
        model.weight.data.fill_(start + number)
        ema.update()
        expected = decay * expected + (1 - decay) * (start + number)
    assert ema.whole("weight").item() == pytest.approx(expected, rel=1e-6)


def test_a_model_in_evaluation_stays_in_it():
    model = nn.Linear(2, 2).eval()
    with Ema(model, decay=0.9).applied():
        assert not model.training
    assert not model.training


def test_while_averages_are_applied_they_are_neither_saved_nor_moved():
    """The two have changed places: weights would be saved as averages, and averages as weights."""
    ema = Ema(nn.Linear(2, 2), decay=0.9)
    with ema.applied():
        for act in (ema.update, lambda: ema.whole("weight"), lambda: ema.give("weight", None), ema.applied().__enter__):
            with pytest.raises(AssertionError, match="applied"):
                act()
    ema.update()


@pytest.mark.parametrize("fails", [False, True])
def test_averages_are_applied_and_taken_back_to_the_bit(fails: bool):
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    ema = Ema(model, decay=0.9)
    model[0].weight.data.normal_()
    ema.update()
    trained, averages = model[0].weight.clone(), ema.whole("0.weight").clone()
    place = model[0].weight.data_ptr()
    with nullcontext() if not fails else pytest.raises(ArithmeticError), ema.applied() as applied:
        assert applied is model
        assert not model[1].training
        assert torch.equal(model[0].weight, averages)
        assert not torch.equal(model[0].weight, trained)
        if fails:
            raise ArithmeticError
    assert model.training
    assert model[1].training
    assert torch.equal(model[0].weight, trained)
    assert torch.equal(ema.whole("0.weight"), averages)
    assert model[0].weight.data_ptr() == place, "an optimiser's or a compiled graph's place"
    assert model[0].weight.requires_grad


def test_averages_need_float32_weights():
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        Ema(nn.Linear(2, 2).to(torch.bfloat16), decay=0.9)


@pytest.mark.parametrize(
    ("config", "processes", "expected"),
    [
        pytest.param(OptimConfig(global_batch_size=32), 1, 32, id="all-at-once"),
        pytest.param(OptimConfig(global_batch_size=32), 4, 8, id="shared-out"),
        pytest.param(OptimConfig(global_batch_size=32, batch_size=4), 2, 4, id="accumulated"),
    ],
)
def test_micro_batch_size(config: OptimConfig, processes: int, expected: int):
    assert micro_batch_size(config, processes) == expected


@pytest.mark.parametrize(
    ("config", "processes", "words"),
    [
        pytest.param(OptimConfig(global_batch_size=32), 3, "global-batch-size 32 .* give 30", id="processes"),
        pytest.param(OptimConfig(global_batch_size=2), 3, "give 3", id="fewer-cells-than-processes"),
        pytest.param(OptimConfig(global_batch_size=32, batch_size=5), 2, "batch-size 5 .* give 4", id="accumulation"),
        pytest.param(OptimConfig(global_batch_size=32, batch_size=64), 1, "give 32", id="more-than-there-are"),
        pytest.param(OptimConfig(global_batch_size=32, batch_size=0), 1, "give 1", id="none-at-once"),
    ],
)
def test_shares_that_do_not_divide(config: OptimConfig, processes: int, words: str):
    with pytest.raises(UserError, match=words):
        micro_batch_size(config, processes)
