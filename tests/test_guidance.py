"""Guidance: the conditional and the unconditional model at 1 and 0, and between and beyond what the formula says."""

import math

import numpy as np
import pytest
import torch
from exact_joint import ExactJoint
from simulated_shards import simulated_counts
from tiny_checkpoint import DRUGS, tiny_checkpoint

from mdsc import generate_anndata, inpaint_anndata
from mdsc.errors import UserError
from mdsc.sampling.guidance import guided
from mdsc.sampling.inpaint import generate

GENES = [f"G{number}" for number in range(20)]


class ConditionedJoint:
    """Exact conditionals of one joint under drug 1, and of an even mixture with another where nothing is told."""

    def __init__(self):
        self.joints = ExactJoint(2, seed=1), ExactJoint(2, seed=2)
        self.both = ExactJoint(2, seed=1)
        self.both.p = (self.joints[0].p + self.joints[1].p) / 2
        states = torch.tensor([[a, b] for a in range(4) for b in range(4)])
        agree = ((states[:, None] == self.both.cells) | (states[:, None] == 3)).all(-1).double()
        is_token = torch.nn.functional.one_hot(self.both.cells, 3).double()
        joint = torch.einsum("sc,c,cgv->sgv", agree, self.both.p, is_token)
        self.both.conditionals = joint / joint.sum(-1, keepdim=True)
        self.passes = 0

    def predict(self, gene_ids, tokens, counts, is_pad, categories, vectors):
        self.passes += 1
        model = self.joints[0] if "drug" in categories else self.both
        return model.predict(gene_ids, tokens, counts, is_pad, categories, vectors)

    def drawn(self, guidance: float, num_cells: int, *, seed: int = 0) -> torch.Tensor:
        categories = {"drug": torch.ones(num_cells, dtype=torch.long)}
        predict = guided(self.predict, guidance)
        return generate(predict, self.both.tokenizer, torch.arange(2), num_cells, categories=categories, seed=seed)


def test_guidance_1_is_the_conditional_model_to_the_bit_and_in_one_pass():
    joint = ConditionedJoint()
    assert guided(joint.predict, 1.0) == joint.predict
    expected = generate(joint.joints[0].predict, joint.both.tokenizer, torch.arange(2), 50, seed=3)
    assert torch.equal(joint.drawn(1.0, 50, seed=3), expected)


def test_guidance_0_is_the_unconditional_model_to_the_bit_and_in_one_pass():
    joint = ConditionedJoint()
    expected = generate(joint.both.predict, joint.both.tokenizer, torch.arange(2), 50, seed=3)
    asked = len(joint.both.calls)
    assert torch.equal(joint.drawn(0.0, 50, seed=3), expected)
    assert len(joint.both.calls) == 2 * asked
    assert joint.passes == asked
    assert not joint.joints[0].calls


@pytest.mark.parametrize("guidance", [0.5, 2.0])
def test_other_guidance_follows_the_formula_position_by_position(guidance: float):
    """Given one visible gene, the law of the other is known: p_c^g p_u^(1-g), normalised."""
    joint, hidden = ConditionedJoint(), 3
    tokens = torch.tensor([[hidden, 1]])
    cells = (torch.arange(2)[None], tokens, torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.bool))
    logits = guided(joint.predict, guidance)(*cells, {"drug": torch.ones(1, dtype=torch.long)}, {})
    given, free = (model.p.reshape(3, 3)[:, 1] for model in (joint.joints[0], joint.both))
    expected = (given / given.sum()) ** guidance * (free / free.sum()) ** (1 - guidance)
    torch.testing.assert_close(logits[0, 0].exp().double(), expected / expected.sum(), rtol=1e-5, atol=1e-7)


def test_samples_under_guidance_have_the_law_of_the_formula():
    """Both genes are hidden, revealed one at a time: the chain rule over guided conditionals, in either order."""
    joint, guidance, number = ConditionedJoint(), 2.0, 20_000

    def law(model: ExactJoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        p = model.p.reshape(3, 3)
        return p.sum(1), p.sum(0), p / p.sum(1, keepdim=True), p / p.sum(0, keepdim=True)

    pairs = zip(law(joint.joints[0]), law(joint.both), (0, 0, 1, 0), strict=True)
    mixed = [given**guidance * free ** (1 - guidance) for given, free, _ in pairs]
    first, second, second_given, first_given = mixed
    one = (first / first.sum())[:, None] * second_given / second_given.sum(1, keepdim=True)
    other = (second / second.sum())[None, :] * first_given / first_given.sum(0, keepdim=True)
    expected = (one + other) / 2
    categories = {"drug": torch.ones(number, dtype=torch.long)}
    counts = generate(
        guided(joint.predict, guidance),
        joint.both.tokenizer,
        torch.arange(2),
        number,
        _many_steps(),
        categories=categories,
    )
    found = torch.bincount(3 * counts[:, 0].long() + counts[:, 1].long(), minlength=9).reshape(3, 3) / number
    distance = (found - expected).abs().sum() / 2
    noise = (expected * (1 - expected) / number).sqrt().sum() / 2
    assert distance < 2.5 * noise
    assert (joint.joints[0].p.reshape(3, 3) - expected).abs().sum() / 2 > 10 * noise, "guidance must matter here"


def _many_steps():
    from mdsc.sampling.options import SamplerOptions

    return SamplerOptions(num_steps=256, grid="uniform")


def test_what_either_model_rules_out_stays_ruled_out():
    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        if categories:
            return torch.tensor([[[0.0, -math.inf, 0.0, -math.inf]]])
        return torch.tensor([[[0.0, 0.0, -math.inf, -math.inf]]])

    for guidance in (0.5, 2.0):
        logits = guided(predict, guidance)(None, None, None, None, {"drug": torch.ones(1)}, {})
        assert logits.tolist() == [[[0.0, -math.inf, -math.inf, -math.inf]]]


def test_half_precision_is_left_before_anything_is_added():
    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        return torch.zeros(1, 1, 4, dtype=torch.bfloat16)

    assert guided(predict, 2.0)(None, None, None, None, {"drug": None}, {}).dtype == torch.float32


def test_generated_cells_at_guidance_1_and_0():
    checkpoint, drug = tiny_checkpoint(GENES), {"drug": DRUGS[1]}
    free, told = (
        generate_anndata(checkpoint, 6, num_steps=4),
        generate_anndata(checkpoint, 6, condition=drug, num_steps=4),
    )
    assert (free.X != told.X).nnz > 0
    for guidance, expected in ((0.0, free), (1.0, told)):
        found = generate_anndata(checkpoint, 6, condition=drug, guidance=guidance, num_steps=4)
        assert (found.X != expected.X).nnz == 0
        assert found.uns["mdsc"]["guidance"] == guidance
    more = generate_anndata(checkpoint, 6, condition=drug, guidance=2.0, num_steps=4)
    assert (more.X != told.X).nnz > 0


def test_filled_cells_at_guidance_1_and_0():
    from anndata import AnnData

    checkpoint, adata = tiny_checkpoint(GENES), AnnData(simulated_counts(6, 20, mean=2.0))
    adata.var_names = GENES
    options = {"mask_ratio": 0.5, "num_steps": 3}
    free = inpaint_anndata(checkpoint, adata, **options)
    told = inpaint_anndata(checkpoint, adata, condition={"drug": DRUGS[1]}, **options)
    for guidance, expected in ((0.0, free), (1.0, told)):
        found = inpaint_anndata(checkpoint, adata, condition={"drug": DRUGS[1]}, guidance=guidance, **options)
        assert (found.layers["mdsc_mean"] != expected.layers["mdsc_mean"]).nnz == 0
        assert (found.layers["mdsc_sampled"] != expected.layers["mdsc_sampled"]).nnz == 0
    more = inpaint_anndata(checkpoint, adata, condition={"drug": DRUGS[1]}, guidance=3.0, **options)
    assert not np.allclose(more.layers["mdsc_mean"].toarray(), told.layers["mdsc_mean"].toarray())


@pytest.mark.parametrize(
    ("guidance", "condition", "words"),
    [
        (2.0, {}, "give --condition NAME=LEVEL (the model knows drug)"),
        (-1.0, {"drug": DRUGS[0]}, "--guidance is -1.0"),
        (math.nan, {"drug": DRUGS[0]}, "--guidance is nan"),
    ],
)
def test_guidance_that_cannot_be_is_told(guidance: float, condition: dict, words: str):
    with pytest.raises(UserError) as error:
        generate_anndata(tiny_checkpoint(GENES), 2, condition=condition, guidance=guidance)
    assert words in str(error.value)
