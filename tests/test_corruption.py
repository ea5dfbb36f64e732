"""Schedules, strata, and which positions are hidden with what weight."""

import pytest
import torch
from scipy import stats

from mdsc.diffusion.corruption import corrupt, hide_at, hide_fraction, strata
from mdsc.diffusion.schedules import SCHEDULES, alpha, alpha_prime, hidden_share
from mdsc.errors import UserError

FORMS = [
    pytest.param("fixed_k", "linear", id="fixed_k"),
    pytest.param("continuous", "linear", id="continuous linear"),
    pytest.param("continuous", "cosine", id="continuous cosine"),
]


def no_pads(batch: int, genes: int) -> torch.Tensor:
    return torch.zeros(batch, genes, dtype=torch.bool)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_falls_from_one_to_zero_with_alpha_prime_as_its_slope(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    a = alpha(t, schedule)
    assert a[0].item() == 1
    assert a[-1].item() == pytest.approx(0, abs=1e-15)
    assert (a.diff() < 0).all()
    (slope,) = torch.autograd.grad(a.sum(), t)
    torch.testing.assert_close(alpha_prime(t.detach(), schedule), slope)
    torch.testing.assert_close(hidden_share(t, schedule), 1 - a)


def test_alpha_of_the_papers():
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert alpha(t, "linear").tolist() == [0.75, 0.5]
    # 1 - cos(pi/2 (1-t)), by hand: cos(3 pi/8) = .3826834, cos(pi/4) = .7071068
    assert alpha(t, "cosine").tolist() == pytest.approx([0.6173166, 0.2928932], abs=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weight_times_hidden_share_is_minus_alpha_prime_down_to_the_smallest_t(schedule):
    t = torch.tensor([2.0**-53, 1e-9, 0.3, 1 - 2.0**-53], dtype=torch.float64)
    corruption = hide_at(t, torch.rand(4, 8).double(), no_pads(4, 8), form="continuous", schedule=schedule)
    assert corruption.weight.isfinite().all()
    torch.testing.assert_close(
        corruption.weight * hidden_share(t, schedule), -alpha_prime(t, schedule), rtol=1e-12, atol=0
    )


def test_strata_of_a_batch_are_evenly_spaced_from_a_uniform_start():
    u = strata(torch.tensor(0.63, dtype=torch.float64), torch.arange(8), 8)
    assert u.sort().values.tolist() == pytest.approx([0.005 + j / 8 for j in range(8)])
    assert u[0].item() == 0.63
    assert u[1].item() == 0.755


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_strata_cover_the_global_batch_once_over_ranks_and_accumulation(world_size, accumulation):
    """With as many cells as genes, each k from 1 to n is used exactly once: over all micro-batches, not in each."""
    n = 24
    shares = torch.arange(n).reshape(-1, world_size).T  # rank r serves cells r::world_size
    k = []
    for share in shares:
        for cells in share.chunk(accumulation):
            hidden = corrupt(no_pads(len(cells), n), cells, global_batch_size=n, seed=1, step=5).hidden
            k += hidden.sum(1).tolist()
    assert sorted(k) == list(range(1, n + 1))


def test_hidden_share_of_the_continuous_form_is_stratified_too():
    batch, genes = 64, 4000
    hidden = corrupt(
        no_pads(batch, genes), torch.arange(batch), global_batch_size=batch, seed=0, step=0, form="continuous"
    ).hidden
    share = hidden.double().mean(1).sort().values
    even = (torch.arange(batch) + 0.5) / batch
    assert (share - even).abs().max() < 0.5 / batch + 4.5 * (0.25 / genes) ** 0.5


@pytest.mark.parametrize(("form", "schedule"), FORMS)
def test_a_cell_is_hidden_alike_alone_and_in_any_batch(form, schedule):
    options = {"global_batch_size": 16, "seed": 3, "step": 2, "form": form, "schedule": schedule}
    together = corrupt(no_pads(16, 50), torch.arange(16), **options)
    for cell in (0, 7, 15):
        alone = corrupt(no_pads(1, 50), torch.tensor([cell]), **options)
        assert torch.equal(alone.hidden[0], together.hidden[cell])
        assert alone.weight[0] == together.weight[cell]


@pytest.mark.parametrize(("form", "schedule"), FORMS)
@pytest.mark.parametrize("key", ["seed", "step"])
def test_seed_and_step_change_what_is_hidden(form, schedule, key):
    options = {"global_batch_size": 16, "seed": 3, "step": 2, "form": form, "schedule": schedule}
    first = corrupt(no_pads(16, 200), torch.arange(16), **options)
    options[key] += 1
    second = corrupt(no_pads(16, 200), torch.arange(16), **options)
    assert not torch.equal(first.weight, second.weight)
    # Nor is it the same order of positions, cut at another length: the less hidden one would lie within the other.
    shares = torch.stack([first.hidden, second.hidden]).double().mean(2)
    some = ((shares > 0.1) & (shares < 0.9)).all(0)
    assert some.sum() >= 4
    both = (first.hidden & second.hidden).double().mean(1)
    assert (both < shares.amin(0))[some].all()


@pytest.mark.parametrize("shift", [0, 1], ids=["same position", "next position"])
def test_neighbouring_cells_hide_independent_positions(shift):
    """With 1,000 cells neighbours hide almost equally many; independent choices of a share s agree in s^2 + (1-s)^2,
    which is 2/3 on average over s."""
    hidden = corrupt(no_pads(1000, 64), torch.arange(1000), global_batch_size=1000, seed=0, step=0).hidden
    agreement = (hidden[:-1, shift:] == hidden[1:, : 64 - shift]).double().mean()
    assert agreement.item() == pytest.approx(2 / 3, abs=0.01)
    half = hide_fraction(no_pads(1000, 64), 0.5, seed=0, cell_index=torch.arange(1000))
    assert (half[:-1, shift:] == half[1:, : 64 - shift]).double().mean().item() == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize(("form", "schedule"), FORMS)
def test_pads_are_never_hidden_and_change_nothing(form, schedule):
    options = {"global_batch_size": 32, "seed": 3, "step": 2, "form": form, "schedule": schedule}
    plain = corrupt(no_pads(32, 20), torch.arange(32), **options)
    is_pad = no_pads(32, 33)
    is_pad[:, 20:] = True
    padded = corrupt(is_pad, torch.arange(32), **options)
    assert torch.equal(padded.hidden[:, :20], plain.hidden)
    assert not padded.hidden[:, 20:].any()
    assert torch.equal(padded.weight, plain.weight)
    hidden = hide_fraction(is_pad, 0.5, seed=0, cell_index=torch.arange(32))
    assert torch.equal(hidden[:, :20], hide_fraction(is_pad[:, :20], 0.5, seed=0, cell_index=torch.arange(32)))


def test_pads_among_the_real_positions():
    is_pad = torch.rand(200, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    corruption = corrupt(is_pad, torch.arange(200), global_batch_size=200, seed=0, step=0)
    n, k = (~is_pad).sum(1), corruption.hidden.sum(1)
    assert not (corruption.hidden & is_pad).any()
    assert (k >= 1).all()
    assert (k <= n).all()
    torch.testing.assert_close(corruption.weight, n.double() / k)


def test_a_cell_without_real_positions_has_a_finite_weight():
    for form in ("fixed_k", "continuous"):
        corruption = corrupt(~no_pads(2, 4), torch.arange(2), global_batch_size=2, seed=0, step=0, form=form)
        assert not corruption.hidden.any()
        assert corruption.weight.isfinite().all()


@pytest.mark.parametrize(("u", "k"), [(0.0, 1), (0.24, 1), (0.25, 2), (0.74, 3), (0.75, 4), (1 - 2.0**-53, 4)])
def test_k_is_one_plus_floor_of_n_u(u, k):
    u = torch.tensor([u], dtype=torch.float64)
    corruption = hide_at(u, torch.tensor([[0.3, 0.1, 0.9, 0.2]]).double(), no_pads(1, 4), form="fixed_k")
    assert corruption.weight.item() == 4 / k
    assert corruption.hidden.int().tolist()[0] == [int(k > 2), 1, int(k > 3), int(k > 1)]


def test_k_never_exceeds_n_by_rounding():
    n = 3  # 3 (1 - 2^-53) rounds to 3
    corruption = hide_at(
        torch.tensor([1 - 2.0**-53]).double(), torch.rand(1, n).double(), no_pads(1, n), form="fixed_k"
    )
    assert corruption.weight.item() == 1


def test_any_subset_of_k_positions_is_as_likely():
    batch = 4000
    hidden = hide_fraction(no_pads(batch, 5), 0.4, seed=11, cell_index=torch.arange(batch))
    codes = (hidden * 2 ** torch.arange(5)).sum(1)
    observed = torch.bincount(codes, minlength=32)
    assert (observed > 0).sum() == 10
    assert stats.chisquare(observed[observed > 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("form", ["fixed_k", "continuous"])
def test_one_cells_share_of_hidden_positions_is_uniform_over_the_steps(form):
    options = {"global_batch_size": 1, "seed": 0, "form": form}
    hidden = [corrupt(no_pads(1, 1000), torch.tensor([0]), step=step, **options).hidden for step in range(200)]
    assert stats.kstest(torch.cat(hidden).double().mean(1).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_hide_fraction_hides_exactly_that_many_of_the_real_positions(ratio):
    is_pad = torch.zeros(40, 57, dtype=torch.bool)
    is_pad[:20, 53:] = True
    hidden = hide_fraction(is_pad, ratio, seed=0, cell_index=torch.arange(40))
    assert (hidden[:20].sum(1) == round(ratio * 53)).all()  # 10.6, 26.5 and 42.4 among them
    assert (hidden[20:].sum(1) == round(ratio * 57)).all()  # 11.4, 28.5 and 45.6
    assert not (hidden & is_pad).any()
    assert ratio in (0, 1) or len(hidden.unique(dim=0)) == 40
    some = torch.tensor([31, 5])
    assert torch.equal(hide_fraction(is_pad[some], ratio, seed=0, cell_index=some), hidden[some])
    other = hide_fraction(is_pad, ratio, seed=1, cell_index=torch.arange(40))
    assert torch.equal(other, hidden) == (ratio in (0, 1))


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_an_impossible_ratio_is_the_users_mistake(ratio):
    with pytest.raises(UserError, match="between 0 and 1"):
        hide_fraction(no_pads(1, 4), ratio, seed=0, cell_index=torch.arange(1))
