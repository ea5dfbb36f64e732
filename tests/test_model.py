"""The network as a function: a set of genes goes in, and neither their order, nor padding, nor the backend matters."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tiny_model import CONDITIONS, NUM_GENES, NUM_TOKENS, tiny_cells, tiny_config, tiny_model
from torch.nn import functional as F

from mdsc.data.batch import batch_from_csr
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.evidence import hide
from mdsc.model.modeling import MdscModel

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
depths = pytest.mark.parametrize("num_layers", [pytest.param(0, id="pooled"), pytest.param(2, id="dit")])


@depths
def test_permuting_the_genes_permutes_the_logits(num_layers: int):
    model, cells = tiny_model(num_layers=num_layers), tiny_cells()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] if value.ndim == 2 else value for name, value in cells.items()}
    expected, found = model(**cells), model(**shuffled)
    torch.testing.assert_close(found.logits, expected.logits[:, order], **CLOSE)
    torch.testing.assert_close(found.cell_state, expected.cell_state, **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@depths
def test_padding_changes_nothing_whatever_gene_stands_there(num_layers: int, attention: str):
    model, cells = tiny_model(num_layers=num_layers, attn_implementation=attention), tiny_cells()
    expected = model(**(cells | {"is_pad": None}))
    padded = {
        "gene_ids": F.pad(cells["gene_ids"], (0, 7)),
        "tokens": F.pad(cells["tokens"], (0, 7), value=NUM_TOKENS + 1),
        "is_pad": F.pad(cells["is_pad"], (0, 7), value=True),
        "counts": F.pad(cells["counts"], (0, 7)),
    }
    padded["gene_ids"][1:, 20:] = torch.randint(NUM_GENES, (2, 7), generator=torch.Generator().manual_seed(2))
    found = model(**padded)
    torch.testing.assert_close(found.logits[:, :20], expected.logits, **CLOSE)
    torch.testing.assert_close(found.cell_state, expected.cell_state, **CLOSE)


def test_a_cell_of_padding_alone_spoils_no_gradient():
    model, cells = tiny_model(), tiny_cells()
    cells["is_pad"][0] = True
    cells["tokens"][0] = NUM_TOKENS + 1
    cells["counts"][0] = 0
    logits = model(**cells).logits
    logits[1:].square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("left", [9, -1])
@depths
def test_counts_that_a_caller_left_at_hidden_positions_are_not_read(num_layers: int, left: int):
    model, cells = tiny_model(num_layers=num_layers), tiny_cells()
    left_in = torch.where(cells["tokens"] == NUM_TOKENS, left, cells["counts"])
    assert not torch.equal(left_in, cells["counts"])
    assert torch.equal(model(**(cells | {"counts": left_in})).logits, model(**cells).logits)


def test_visible_genes_matter_and_hidden_counts_do_not():
    model, rng = tiny_model(), np.random.default_rng(3)
    tokenizer = make_tokenizer("rank", NUM_TOKENS)
    counts = rng.poisson(1.5, size=(4, NUM_GENES)).astype(np.int32)
    batch = batch_from_csr(sp.csr_matrix(counts), np.arange(NUM_GENES), tokenizer)
    hidden = torch.from_numpy(rng.random(counts.shape) < 0.5)

    def logits(change: torch.Tensor) -> torch.Tensor:
        changed = replace(batch, counts=batch.counts + change.int() * 5)
        return hide(changed, hidden).predict(lambda *arguments: model(*arguments).logits, tokenizer)

    expected = logits(torch.zeros_like(hidden))
    assert torch.equal(logits(hidden), expected)
    one_visible = torch.zeros_like(hidden)
    one_visible[torch.arange(4), (~hidden).int().argmax(dim=1)] = True
    assert (logits(one_visible) - expected).abs().amax(dim=(1, 2)).min() > 1e-3


def test_under_bf16_the_head_stays_float32():
    model, cells = tiny_model(hidden_size=32), tiny_cells(batch=16)
    targets = torch.randint(NUM_TOKENS, cells["tokens"].shape, generator=torch.Generator().manual_seed(4))
    seen = []
    with torch.no_grad():
        expected = model(**cells).logits
        with (
            model.final.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output))),
            torch.autocast("cpu", torch.bfloat16),
        ):
            found = model(**cells).logits
        inputs, output = seen[0]
        assert torch.equal(model.final(*inputs), output)
    assert found.dtype == output.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.3  # the trunk is bf16
    nll = [F.cross_entropy(logits.flatten(0, 1), targets.flatten()) for logits in (expected, found)]
    assert abs(nll[0] - nll[1]) < 5e-3


def test_without_layers_it_is_the_pathway_of_a_deeper_model():
    deep, cells = tiny_model(num_layers=2, **CONDITIONS), tiny_cells()
    pooled = MdscModel(tiny_config(num_layers=0, **CONDITIONS)).eval()
    missing, _ = pooled.load_state_dict(deep.state_dict(), strict=False)
    assert not missing
    expected = deep(**cells, pathway_only=True)
    assert torch.equal(pooled(**cells).logits, expected.logits)
    assert (deep(**cells).logits - expected.logits).abs().max() > 0.1


@pytest.mark.parametrize("given", [{"drug": torch.zeros(3, dtype=torch.long)}, {}, None])
def test_an_unknown_condition_is_level_0(given):
    model, cells = tiny_model(**CONDITIONS), tiny_cells()
    expected = model(**cells, categories={"drug": torch.tensor([0, 0, 0])}).logits
    assert torch.equal(model(**cells, categories=given).logits, expected)


@depths
def test_each_known_condition_changes_the_logits_of_its_cell_alone(num_layers: int):
    model, cells = tiny_model(num_layers=num_layers, **CONDITIONS), tiny_cells()
    unknown = model(**cells).logits
    for drug in (1, 2):
        found = model(**cells, categories={"drug": torch.tensor([0, drug, 0])}).logits
        assert torch.equal(found[[0, 2]], unknown[[0, 2]])
        assert (found[1] - unknown[1]).abs().max() > 1e-3
    text = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))
    assert (model(**cells, vectors={"text": text}).logits - unknown).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"categories": {"dose": torch.zeros(3, dtype=torch.long)}}, id="category"),
        pytest.param({"vectors": {"dose": torch.zeros(3, 5)}}, id="vector"),
    ],
)
def test_a_condition_that_the_model_does_not_have_is_an_error(given):
    with pytest.raises(ValueError, match="no condition named dose"):
        tiny_model(**CONDITIONS)(**tiny_cells(), **given)


@pytest.mark.parametrize("name", ["type", "a.b", "forward"])
def test_a_condition_may_be_called_anything(name: str):
    model = tiny_model(condition_levels={name: ["x", "y"]})
    found = model(**tiny_cells(), categories={name: torch.tensor([0, 1, 2])}).logits
    assert torch.isfinite(found).all()
