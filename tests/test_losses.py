"""Losses against plain float64 loops; their minimisers; SUBS; precision; gradients; pads."""

import math

import pytest
import reference
import torch

from mdsc.config.schema import ObjectiveConfig
from mdsc.diffusion.corruption import corrupt
from mdsc.diffusion.losses import cross_entropy, cross_entropy_per_cell, crps, log_probs, mean_matching, objective

V = 5
VALUES = torch.tensor([0.0, 1.0, 2.5, 7.0, 40.0], dtype=torch.float64)
ORDINALS = ["mean_matching", "crps", "unsquared", "none"]


def example(batch=6, genes=9, dtype=torch.float64, seed=0):
    """A batch with pads at the end of every other row, visible positions, and pad_token where nothing is."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, genes, V, generator=generator, dtype=torch.float64)
    tokens = torch.randint(V, (batch, genes), generator=generator)
    is_pad = torch.zeros(batch, genes, dtype=torch.bool)
    is_pad[::2, -3:] = True
    corruption = corrupt(is_pad, torch.arange(batch), global_batch_size=batch, seed=seed, step=0)
    return {
        "logits": logits.to(dtype),
        "tokens": tokens.masked_fill(is_pad, V + 1),
        "hidden": corruption.hidden,
        "weight": corruption.weight,
        "is_pad": is_pad,
        "values": VALUES,
    }


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_objective_equals_plain_loops(ordinal):
    batch = example()
    got = objective(**batch, config=ObjectiveConfig(ordinal=ordinal, ordinal_weight=0.3))
    lists = {name: value.tolist() for name, value in batch.items() if name != "values"}
    nll, ordinals = reference.objective(**lists, v=[math.log(1 + x) for x in VALUES], ordinal=ordinal)
    assert got["nll"].tolist() == pytest.approx(nll, rel=1e-12)
    assert got["ordinal"].tolist() == pytest.approx(ordinals, rel=1e-12)
    torch.testing.assert_close(got["loss"], got["nll"] + 0.3 * got["ordinal"])
    del batch["values"]
    torch.testing.assert_close(cross_entropy_per_cell(**batch), got["nll"])


@pytest.mark.parametrize("ordinal", ORDINALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_are_finite_also_for_extreme_logits_and_vanish_where_nothing_is_hidden(ordinal, dtype):
    batch = example(dtype=dtype)
    batch["logits"][0] *= 1e4
    batch["logits"][1] = 0
    batch["logits"].requires_grad_(True)
    objective(**batch, config=ObjectiveConfig(ordinal=ordinal))["loss"].mean().backward()
    gradient = batch["logits"].grad
    assert gradient.isfinite().all()
    assert (gradient[~batch["hidden"]] == 0).all()
    assert (gradient[batch["hidden"]].abs().sum(-1)[2:] > 0).any()


@pytest.mark.parametrize("ordinal", ORDINALS[:3])
def test_gradient_is_that_of_the_loss(ordinal):
    batch = example(batch=3, genes=4)
    batch["logits"].requires_grad_(True)
    config = ObjectiveConfig(ordinal=ordinal)
    assert torch.autograd.gradcheck(
        lambda logits: objective(**{**batch, "logits": logits}, config=config)["loss"], batch["logits"]
    )


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_extra_pads_change_no_loss(ordinal):
    batch = example()
    config = ObjectiveConfig(ordinal=ordinal)
    plain = objective(**batch, config=config)
    for name, filler in (("logits", 1e3), ("tokens", V + 1), ("hidden", False), ("is_pad", True)):
        old = batch[name]
        batch[name] = torch.full((len(old), 15, *old.shape[2:]), filler, dtype=old.dtype)
        batch[name][:, :9] = old
    padded = objective(**batch, config=config)
    for name in plain:
        torch.testing.assert_close(padded[name], plain[name], rtol=1e-14, atol=0)


def test_a_cell_of_pads_alone_costs_nothing():
    batch = example()
    batch["is_pad"][3] = True
    batch["hidden"][3] = False
    batch["weight"][3] = 0
    got = objective(**batch, config=ObjectiveConfig())
    assert all(value[3] == 0 for value in got.values())


def test_what_the_logits_say_of_visible_positions_changes_nothing():
    batch = example()
    config = ObjectiveConfig(ordinal="crps")
    plain = objective(**batch, config=config)
    batch["logits"] = torch.where(batch["hidden"][..., None], batch["logits"], 77.0)
    batch["logits"][~batch["hidden"]] += torch.randn(V, dtype=torch.float64)
    assert torch.equal(objective(**batch, config=config)["loss"], plain["loss"])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_uniform_logits_cost_exactly_log_v_in_every_cell_with_fixed_k(schedule):
    """No cut-off of t near 0 or 1, no variance, whatever is hidden and however many pads a cell has."""
    batch = example(batch=64)
    batch["logits"][:] = 4.2
    nll = objective(**batch, config=ObjectiveConfig(schedule=schedule))["nll"]
    assert nll.tolist() == pytest.approx([math.log(V)] * 64, rel=1e-14)


def test_log_probs_of_a_state_is_one_hot_where_a_token_is_visible():
    logits = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[2, V, 0], [V, V - 1, V]])  # V is the mask token
    log_p = log_probs(logits, tokens)
    assert log_p.shape[-1] == V  # the mask token has no probability at all
    assert log_p[0, 0].tolist() == [-math.inf, -math.inf, 0.0, -math.inf, -math.inf]
    assert log_p[0, 2, 0] == 0
    assert log_p[1, 1].exp().tolist() == [0, 0, 0, 0, 1]
    hidden = tokens == V
    assert torch.equal(log_p[hidden], torch.log_softmax(logits, -1)[hidden])
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 3))


def test_gradient_through_log_probs_of_a_state_is_finite():
    logits = torch.randn(2, 3, V).requires_grad_(True)
    log_probs(logits, torch.tensor([[2, V, 0], [V, 4, V]])).exp().sum(-1).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 0] == 0).all()


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_autocast_changes_nothing_after_the_logits(ordinal):
    """Values up to 40 and 64 tokens: means taken in bfloat16 would be off in the third digit."""
    batch = example(dtype=torch.float32)
    config = ObjectiveConfig(ordinal=ordinal)
    plain = objective(**batch, config=config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = objective(**batch, config=config)
    for name in plain:
        assert cast[name].dtype == torch.float32
        assert torch.equal(cast[name], plain[name])


def test_bfloat16_logits_are_scored_in_float32():
    batch = example(dtype=torch.bfloat16)
    got = objective(**batch, config=ObjectiveConfig())
    same = objective(**{**batch, "logits": batch["logits"].double()}, config=ObjectiveConfig())
    for name in got:
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name].double(), same[name], rtol=2e-6, atol=0)


def minimiser(score, weight: float) -> torch.Tensor:
    """The law p that minimises cross-entropy + weight * score on average over tokens drawn from LAW."""
    logits = LAW.log().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    tokens = torch.arange(4)[None]

    def closure():
        optimiser.zero_grad()
        log_p = torch.log_softmax(logits, -1).expand(1, 4, 4)
        expected = (LAW * (cross_entropy(log_p, tokens) + weight * score(log_p, tokens, POINTS))[0]).sum()
        expected.backward()
        return expected

    optimiser.step(closure)
    return torch.softmax(logits.detach(), -1)


LAW = torch.tensor([0.70, 0.15, 0.10, 0.05], dtype=torch.float64)  # of 0, 1, 2, 3: mean 0.5, median 0
POINTS = torch.arange(4, dtype=torch.float64)


@pytest.mark.parametrize("score", [pytest.param(mean_matching, id="squared mean matching"), crps])
@pytest.mark.parametrize("weight", [1.0, 30.0])
def test_proper_ordinal_terms_keep_the_minimiser_of_the_cross_entropy(score, weight):
    torch.testing.assert_close(minimiser(score, weight), LAW, rtol=0, atol=1e-4)


def test_the_unsquared_norm_pulls_the_minimiser_to_the_median():
    """With the mean m between 0 and 1 the slope of E|m - x| is P(0) - P(not 0) = 0.4, so the stationary law is
    LAW / (1 - 0.4 m + 0.4 x), which sums to one at m = 0.309: p(0) goes from .70 to .80, the mean from .50 to .31."""
    law = minimiser(lambda *arguments: mean_matching(*arguments, squared=False), 1.0)
    mean = (law * POINTS).sum()
    assert law[0].item() == pytest.approx(0.799, abs=0.001)
    assert mean.item() == pytest.approx(0.309, abs=0.001)
    torch.testing.assert_close(law, LAW / (1 - 0.4 * mean + 0.4 * POINTS), rtol=0, atol=1e-4)
