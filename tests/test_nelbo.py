"""The bound, measured with exact conditionals, is the entropy; the usual wrong weightings are not."""

import math

import pytest
import torch
from exact_joint import ExactJoint

from mdsc.diffusion.corruption import corrupt
from mdsc.diffusion.evidence import hide
from mdsc.diffusion.losses import cross_entropy, log_probs
from mdsc.sampling.nelbo import nelbo, standard_error

FORMS = [
    pytest.param("fixed_k", "linear", id="fixed_k"),
    pytest.param("continuous", "linear", id="continuous linear"),
    pytest.param("continuous", "cosine", id="continuous cosine"),
]


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=4)


@pytest.fixture(scope="module")
def population(joint):
    """Cells drawn from the joint."""
    generator = torch.Generator().manual_seed(0)
    return joint.batch(joint.cells[torch.multinomial(joint.p, 20_000, replacement=True, generator=generator)])


@pytest.mark.parametrize(("form", "schedule"), FORMS)
def test_nelbo_of_exact_conditionals_is_the_entropy(joint, population, form, schedule):
    bound = nelbo(joint.predict, joint.tokenizer, population, num_replicates=2, form=form, schedule=schedule)
    assert bound.error < 0.01
    assert abs(bound.mean - joint.entropy / joint.length) < 3 * bound.error


@pytest.mark.parametrize(("form", "schedule"), FORMS)
@pytest.mark.parametrize("num_pads", [0, 2])
def test_nelbo_of_each_cell_is_its_own_negative_log_likelihood(joint, form, schedule, num_pads):
    """Exact conditionals multiply to p(cell) in any order, so the bound is tight cell by cell, with pads or without."""
    bound = nelbo(joint.predict, joint.tokenizer, joint.batch(joint.cells, num_pads), num_replicates=60, form=form,
                  schedule=schedule, seed=1)  # fmt: skip
    off = bound.per_cell + joint.p.log() / joint.length
    assert abs(off.sum()) < 3 * bound.per_cell_error.square().sum() ** 0.5
    if form == "fixed_k":  # the weight 1/t has no variance: single cells are off by many of its estimated errors
        z = off / bound.per_cell_error
        assert z.abs().max() < 4
        assert z.square().mean() < 1.3


def test_fixed_k_has_the_smaller_error(joint):
    errors = {
        form: nelbo(
            joint.predict, joint.tokenizer, joint.batch(joint.cells), num_replicates=50, form=form
        ).per_cell_error
        for form in ("fixed_k", "continuous")
    }
    assert errors["fixed_k"].mean() < 0.7 * errors["continuous"].mean()


@pytest.mark.parametrize(
    ("estimator", "form"),
    [
        pytest.param(lambda ce, hidden, weight: ce[hidden].mean(), "continuous", id="pooled over the batch"),
        pytest.param(lambda ce, hidden, weight: (ce * hidden).sum(1).mean() / 4, "continuous", id="no weight"),
        pytest.param(
            lambda ce, hidden, weight: ((ce * hidden).sum(1) / hidden.sum(1).clamp(min=1)).mean(),
            "continuous",
            id="per-cell mean under Bernoulli",
        ),
        pytest.param(
            lambda ce, hidden, weight: (ce * hidden).sum() / hidden.sum(),
            "fixed_k",
            id="fixed k, pooled over the batch",
        ),
    ],
)
def test_wrong_weightings_miss_the_entropy_by_far(joint, population, estimator, form):
    """What `F.cross_entropy(logits[mask], ...)` and its like estimate: the test above can tell the difference."""
    size = len(population)
    corruption = corrupt(population.is_pad, population.cell_index, global_batch_size=size, seed=0, step=0, form=form)
    logits = hide(population, corruption.hidden).predict(joint.predict, joint.tokenizer)
    ce = cross_entropy(log_probs(logits), population.tokens).double()
    truth = joint.entropy / joint.length
    right = (corruption.weight * (ce * corruption.hidden).sum(1)).mean() / joint.length
    assert right.item() == pytest.approx(truth, rel=0.03)
    assert abs(estimator(ce, corruption.hidden, corruption.weight).item() - truth) > 0.05 * truth


@pytest.mark.parametrize("num_replicates", [1, 5])
def test_uniform_logits_give_exactly_log_v(joint, num_replicates):
    def uniform(gene_ids, *_):
        return torch.zeros(*gene_ids.shape, 3)

    bound = nelbo(uniform, joint.tokenizer, joint.batch(joint.cells, num_pads=3), num_replicates=num_replicates)
    assert bound.per_cell.tolist() == pytest.approx([math.log(3)] * 81, rel=1e-6)
    assert bound.per_cell_error.isnan().all() if num_replicates == 1 else (bound.per_cell_error < 1e-6).all()


@pytest.mark.parametrize(("form", "schedule"), FORMS)
def test_every_number_of_hidden_genes_counts_alike(joint, form, schedule):
    """A loss of k^2/16 with k genes hidden, whatever they are: the bound is the mean over k = 1 .. 4.

    Weights that are off by one per cent would be seen.
    """

    def predict(gene_ids, tokens, *_):
        k = (tokens == joint.num_tokens).sum(1)[:, None, None].expand(*tokens.shape, 1)
        loss = k.double().clamp(min=1).square() / 16
        return torch.cat([-loss, torch.log(-torch.expm1(-loss)), torch.full_like(loss, -50.0)], dim=-1)

    zeros = joint.batch(torch.zeros(40_000, 4, dtype=torch.long))
    bound = nelbo(predict, joint.tokenizer, zeros, num_replicates=4, form=form, schedule=schedule)
    assert bound.error < 0.0015
    assert abs(bound.mean - 30 / 64) < 4 * bound.error


@pytest.mark.parametrize(("form", "schedule"), FORMS)
def test_a_cell_scores_the_same_alone_and_among_others(joint, form, schedule):
    cells = joint.batch(joint.cells)
    options = {"num_replicates": 3, "form": form, "schedule": schedule}
    whole = nelbo(joint.predict, joint.tokenizer, cells, **options)
    alone = nelbo(joint.predict, joint.tokenizer, cells.select(torch.tensor([50])), **options)
    assert alone.per_cell[0] == whole.per_cell[50]
    assert math.isnan(alone.error)


def test_the_seed_changes_how_many_and_which_positions_are_hidden(joint):
    hidden = []
    for seed in (0, 1):
        nelbo(joint.predict, joint.tokenizer, joint.batch(joint.cells), seed=seed, num_replicates=1)
        hidden.append(joint.calls[-1] == joint.num_tokens)
    number = torch.stack(hidden).sum(2)
    assert (number[0] != number[1]).any()
    both = (hidden[0] & hidden[1]).sum(1)
    assert (both < number.amin(0)).any()  # or the smaller set would always lie within the other


def test_the_schedule_reaches_the_corruption(joint):
    cells = joint.batch(joint.cells)
    linear, cosine = (
        nelbo(joint.predict, joint.tokenizer, cells, form="continuous", schedule=schedule).per_cell
        for schedule in ("linear", "cosine")
    )
    assert not torch.equal(linear, cosine)


def test_the_standard_error_by_hand():
    assert standard_error(torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)).tolist() == [1, 0]


def test_one_replicate_has_no_bias(joint, population):
    """The control variate has draws of its own: with those of the replicate the bound would be wrong."""

    def by_place(gene_ids, tokens, *_):
        hidden = (tokens == joint.num_tokens).double().sum(dim=1)[:, None, None]
        return (gene_ids[..., None] * hidden * torch.tensor([0.0, 0.4, -0.3])).float()

    found = nelbo(by_place, joint.tokenizer, population, num_replicates=1)
    exact = nelbo(by_place, joint.tokenizer, population, num_replicates=60, seed=1)
    assert abs(found.mean - exact.mean) < 4 * (found.per_cell - exact.per_cell).std().item() / len(population) ** 0.5
