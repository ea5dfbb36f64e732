"""log p of any genes given any others, on a joint law that is small enough to know all of them."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from exact_joint import ExactJoint
from scipy import stats

from mdsc.data.batch import CellBatch
from mdsc.diffusion.corruption import hide_at
from mdsc.sampling.chain_rule import chain_rule
from mdsc.sampling.nelbo import nelbo, token_losses

# Each of four genes is a target, given, or left out; some gene is a target.
ROLES = [roles for roles in product("TG-", repeat=4) if "T" in roles]


@pytest.fixture(scope="module")
def joint() -> ExactJoint:
    return ExactJoint(length=4)


class LeftOut:
    """The joint's conditionals, for cells of which some genes are not in the set: to the joint they are hidden."""

    def __init__(self, joint: ExactJoint):
        self.joint = joint

    def predict(self, gene_ids, tokens, counts, is_pad, categories, vectors):
        shape = (len(tokens), self.joint.length)
        state = torch.full(shape, self.joint.num_tokens).scatter(1, gene_ids, tokens)
        seen = torch.zeros(shape, dtype=counts.dtype).scatter(1, gene_ids, counts)
        everything = torch.arange(self.joint.length).expand(shape)
        no_pads = torch.zeros(shape, dtype=torch.bool)
        logits = self.joint.predict(everything, state, seen, no_pads, categories, vectors)
        return logits.gather(1, gene_ids[..., None].expand(*gene_ids.shape, self.joint.num_tokens))


def chosen(joint: ExactJoint, roles: tuple[str, ...], order: list[int] | None = None) -> tuple[CellBatch, torch.Tensor]:
    """All 81 cells with the target and the given genes alone, and which of these are targets."""
    genes = [gene for gene in (order or range(4)) if roles[gene] != "-"]
    whole = joint.batch(joint.cells)
    of_genes = {name: getattr(whole, name)[:, genes] for name in ("gene_ids", "counts", "tokens", "is_pad")}
    target = torch.tensor([roles[gene] == "T" for gene in genes]).expand(len(joint.cells), -1)
    return replace(whole, **of_genes), target


def truth(joint: ExactJoint, roles: tuple[str, ...]) -> torch.Tensor:
    """-log p(x_T | x_G) / |T| of each of the 81 cells, from the table of the joint."""

    def marginal(kept: list[int]) -> torch.Tensor:
        agree = (joint.cells[:, None, kept] == joint.cells[None, :, kept]).all(-1)
        return agree.double() @ joint.p

    target, given = ([gene for gene in range(4) if roles[gene] == role] for role in "TG")
    return -(marginal(target + given) / marginal(given)).log() / len(target)


@pytest.mark.parametrize("roles", ROLES, ids="".join)
def test_every_subset_given_every_other_is_the_truth(joint, roles):
    cells, target = chosen(joint, roles)
    exact = truth(joint, roles)
    by_chain = chain_rule(LeftOut(joint).predict, joint.tokenizer, cells, target=target, num_orders=3)
    torch.testing.assert_close(by_chain.replicates, exact[:, None].expand(-1, 3), atol=1e-5, rtol=0)
    bound = nelbo(LeftOut(joint).predict, joint.tokenizer, cells, target=target, num_replicates=12)
    if roles.count("T") <= 2:  # the control and any pair hide all that there is to hide: nothing is left to chance
        torch.testing.assert_close(bound.per_cell, exact, atol=1e-5, rtol=0)
        return
    off = bound.per_cell - exact
    assert abs(off.sum()) < 4 * bound.per_cell_error.square().sum().sqrt()
    assert off.abs().mean() < 0.15


@pytest.fixture(scope="module")
def larger() -> ExactJoint:
    return ExactJoint(length=6, seed=3)


@pytest.mark.parametrize("num_replicates", [4, 16])
def test_error_bars_cover_at_the_rate_that_they_say(larger, num_replicates):
    """The mean square error is what it is said to be, and intervals by Student's t, with one degree of freedom less
    than replicates, hold the truth in 90 of 100 cases."""
    generator = torch.Generator().manual_seed(0)
    cells = larger.batch(larger.cells[torch.randint(len(larger.cells), (2400,), generator=generator)])
    exact = -larger.p[larger.code(cells.tokens, 3)].log() / 6
    bound = nelbo(larger.predict, larger.tokenizer, cells, num_replicates=num_replicates)
    off = bound.per_cell - exact
    assert off.square().mean() == pytest.approx(bound.per_cell_error.square().mean().item(), rel=0.15)
    held = off.abs() <= stats.t.ppf(0.95, num_replicates - 1) * bound.per_cell_error
    # Few genes give few different draws, so that a normal law is not reached: some per cent are missing.
    assert 0.83 < held.double().mean() < 0.92


def test_orders_of_a_wrong_model_differ_and_their_error_covers_the_mean_of_all(joint):
    """A model whose conditionals fit no joint: each order is a law of its own, and `nelbo` estimates their mean."""

    def wrong(gene_ids, tokens, *others):
        logits = joint.predict(gene_ids, tokens, *others)
        return logits * (0.3 + 0.4 * (tokens == joint.num_tokens).double().mean(1))[:, None, None]

    cells = joint.batch(joint.cells)
    chains = chain_rule(wrong, joint.tokenizer, cells, num_orders=60)
    bound = nelbo(wrong, joint.tokenizer, cells, num_replicates=30, seed=1)
    assert chains.replicates.std(dim=1).mean() > 0.02
    z = (chains.per_cell - bound.per_cell) / (chains.per_cell_error**2 + bound.per_cell_error**2).sqrt()
    assert z.square().mean() < 1.5


def test_no_gene_that_is_left_out_or_hidden_reaches_the_model(joint):
    """The same genes with other counts at hidden targets: the model is asked the same, count by count."""
    roles = tuple("TG-G")
    cells, target = chosen(joint, roles)
    asked = []

    def predict(gene_ids, tokens, counts, *others):
        assert set(gene_ids.unique().tolist()) == {0, 1, 3}
        assert (counts[target] == 0).all() or (tokens[target] < joint.num_tokens).any()
        asked.append((tokens, counts))
        return LeftOut(joint).predict(gene_ids, tokens, counts, *others)

    other = replace(cells, counts=torch.where(target, 2 - cells.counts, cells.counts))
    other = replace(other, tokens=other.counts.long())
    for batch in (cells, other):
        nelbo(predict, joint.tokenizer, batch, target=target, num_replicates=2)
    half = len(asked) // 2
    is_all_hidden = [(tokens[target] == joint.num_tokens).all().item() for tokens, _ in asked[:half]]
    assert sum(is_all_hidden) >= 5  # the one target in each draw, and in one half of the control
    for (tokens, counts), (same_tokens, same_counts), hidden in zip(
        asked[:half], asked[half:], is_all_hidden, strict=True
    ):
        if hidden:
            assert torch.equal(tokens, same_tokens)
            assert torch.equal(counts, same_counts)


@pytest.mark.parametrize("estimate", [nelbo, chain_rule])
def test_the_order_of_the_genes_and_the_other_cells_change_nothing(joint, estimate):
    roles = tuple("TTGT")
    cells, target = chosen(joint, roles)
    turned, turned_target = chosen(joint, roles, order=[3, 1, 0, 2])
    scores = estimate(LeftOut(joint).predict, joint.tokenizer, cells, target=target)
    again = estimate(LeftOut(joint).predict, joint.tokenizer, turned, target=turned_target)
    torch.testing.assert_close(again.replicates, scores.replicates)
    part = torch.arange(20, 30)
    few = estimate(LeftOut(joint).predict, joint.tokenizer, cells.select(part), target=target[part])
    assert torch.equal(few.replicates, scores.replicates[part])


def test_the_control_variate_takes_noise_away(larger):
    """Beside the plain estimate, the mean loss over the hidden genes, from the same number of passes."""
    cells = larger.batch(larger.cells[::9])
    bound = nelbo(larger.predict, larger.tokenizer, cells, num_replicates=15)
    generator = torch.Generator().manual_seed(0)
    plain = []
    for _ in range(32):
        u, scores = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((81,), (81, 6)))
        corruption = hide_at(u, scores, cells.is_pad, form="fixed_k")
        losses = token_losses(larger.predict, larger.tokenizer, cells, corruption.hidden)
        plain.append(losses.sum(1) * corruption.weight / 6)
    plain_error = torch.stack(plain, dim=1).std(dim=1) / 32**0.5
    assert bound.per_cell_error.square().mean() < 0.85 * plain_error.square().mean()
