"""The latent backbone: it reads visible nonzero genes and no others, costs as much as there are genes, and learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse as sp
import torch
from tiny_model import CONDITIONS, NUM_GENES, NUM_TOKENS, tiny_cells, tiny_config, tiny_model
from tiny_run import tiny_config as run_config
from tiny_run import tiny_shards, tiny_trainer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from mdsc.data.batch import batch_from_csr
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.evidence import Evidence, hide
from mdsc.errors import UserError
from mdsc.model.attention import Attending
from mdsc.model.cell_state import CellState
from mdsc.model.configuration import MdscConfig
from mdsc.model.keyed_dropout import KeyedDropout, keyed_dropout
from mdsc.model.latent import CrossAttention, LatentRead, columns_of, is_nonzero, most_nonzero, over_columns
from mdsc.model.modeling import MdscModel
from mdsc.model.zero_start import ZeroLinear
from mdsc.prep.simulate import simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth
from mdsc.sampling.inpaint import fill
from mdsc.sampling.options import SamplerOptions
from mdsc.training.option_checks import check
from mdsc.training.validation import validate

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
LATENT = {"backbone": "latent", "num_latents": 5}
attentions = pytest.mark.parametrize("attention", ["sdpa", "eager", "sdpa_math"])


def latent_model(**changes) -> MdscModel:
    """In evaluation mode, every weight drawn at random."""
    return tiny_model(**(LATENT | changes))


def without_pathway(model: MdscModel) -> MdscModel:
    """One gene hears of another through the latents alone."""
    rest = ("state_to_", "evidence_to_", "gene_response", "cell_state.readout", "cell_state.depth_readout")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(rest):
                parameter.zero_()
    return model


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift


def by_formula(attention: CrossAttention, queries: Tensor, source: Tensor, keep: Tensor) -> Tensor:
    """Two heads of width 8; keep: (batch, sources)."""
    parts = (attention.query(queries), *attention.key_value(source).chunk(2, dim=-1))
    query, key, value = (part.view(len(source), -1, 2, 8).transpose(1, 2) for part in parts)
    scores = (query @ key.mT / 8**0.5).masked_fill(~keep[:, None, None], -torch.inf)
    return attention.out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


@attentions
def test_permuting_the_genes_permutes_the_logits(attention: str):
    model, cells = latent_model(attn_implementation=attention), tiny_cells()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] for name, value in cells.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**shuffled).logits, model(**cells).logits[:, order], **CLOSE)


def test_genes_hear_of_visible_nonzero_genes_and_of_no_others():
    model, cells = without_pathway(latent_model()), tiny_cells()
    expected = model(**cells).logits
    read = is_nonzero(cells["tokens"], NUM_TOKENS)
    assert read.any()
    assert not read[-1].any()
    for place in range(20):
        gene_ids = cells["gene_ids"].clone()
        gene_ids[:, place] = (gene_ids[:, place] + 1) % NUM_GENES
        moved = (model(**(cells | {"gene_ids": gene_ids})).logits - expected).abs().amax(dim=2)
        others = torch.arange(20) != place
        assert (moved[:, place] > 1e-3).all()  # its own embedding
        assert torch.equal(moved[:, others].amax(dim=1) > 1e-4, read[:, place])
        assert (moved[:, others][~read[:, place]] < 1e-6).all()


def test_a_visible_zero_counts_in_the_pathway():
    model, cells = latent_model(), tiny_cells()
    place = (cells["tokens"][0] == 0).int().argmax()
    hidden = cells["tokens"].clone()
    hidden[0, place] = NUM_TOKENS
    moved = (model(**(cells | {"tokens": hidden})).logits - model(**cells).logits).abs().amax(dim=2)
    assert (moved[0] > 1e-5).all()
    assert (moved[1:] == 0).all()


@attentions
@pytest.mark.parametrize("max_nonzero", [None, 130, 200, 1000])
def test_what_is_gathered_is_what_a_mask_over_all_genes_lets_through(attention: str, max_nonzero: int | None):
    read = latent_model(attn_implementation=attention).latent_read
    generator = torch.Generator().manual_seed(0)
    x, condition = torch.randn(4, 200, 16, generator=generator), torch.randn(4, 16, generator=generator)
    tokens = torch.randint(1, NUM_TOKENS, (4, 200), generator=generator)
    number = torch.tensor([0, 1, 63, 130])[:, None]
    seen = torch.rand(4, 200, generator=generator).argsort(dim=1) < number
    tokens = torch.where(seen, tokens, torch.tensor([0, NUM_TOKENS, NUM_TOKENS + 1])[torch.arange(200) % 3])
    assert is_nonzero(tokens, NUM_TOKENS).sum(dim=1).tolist() == [0, 1, 63, 130]

    shift, scale, shift_s, scale_s = read.modulation(condition)[:, None].chunk(4, dim=-1)
    source = modulated(torch.cat([read.null.expand(4, 1, -1), x], dim=1), shift_s, scale_s)
    keep = torch.cat([torch.ones(4, 1, dtype=torch.bool), is_nonzero(tokens, NUM_TOKENS)], dim=1)
    mixed = by_formula(read.attention, modulated(read.latents, shift, scale), source, keep)
    expected = read.latents + mixed
    torch.testing.assert_close(read(x, tokens, condition, attention, max_nonzero), expected, **CLOSE)


def test_the_readout_is_attention_to_the_latents_and_an_mlp():
    readout, generator = latent_model().latent_readout, torch.Generator().manual_seed(0)
    x, latents, condition = (torch.randn(2, *size, generator=generator) for size in ((20, 16), (5, 16), (16,)))
    parts = readout.modulation(condition)[:, None].chunk(8, dim=-1)
    shift_a, scale_a, gate_a, shift_s, scale_s, shift_m, scale_m, gate_m = parts
    everything = torch.ones(2, 5, dtype=torch.bool)
    source = modulated(latents, shift_s, scale_s)
    expected = x + gate_a * by_formula(readout.attention, modulated(x, shift_a, scale_a), source, everything)
    enter, _, leave = readout.mlp
    bent = F.gelu(enter(modulated(expected, shift_m, scale_m)), approximate="tanh")
    expected = expected + gate_m * leave(bent)
    torch.testing.assert_close(readout(x, latents, condition, Attending("sdpa", None)), expected, **CLOSE)


@pytest.mark.parametrize("backbone", ["latent", "dit"])
def test_every_dropout_has_keys_of_its_own(backbone: str, monkeypatch):
    model, original = tiny_model(backbone=backbone, dropout=0.2, state_dropout=0.2).train(), KeyedDropout.forward
    seen = []

    def watched(self, x, keys=None):
        seen.append((keys or self.keys).run.item())
        return original(self, x, keys)

    monkeypatch.setattr(KeyedDropout, "forward", watched)
    with keyed_dropout(model, seed=0, step=0, cell_index=torch.arange(3)):
        model(**tiny_cells())
    layers = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    assert len(layers) == {"latent": 8, "dit": 5}[backbone]  # two of each block and of the readout, read, cell state
    assert len(set(seen)) == len(seen) == len(layers)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        *((name, name) for name in ("eager", "sdpa", "sdpa_math", "sdpa_efficient", "sdpa_cudnn")),
        *((name, "sdpa") for name in ("sdpa_flash", "flash_attention_2", "flex_attention")),
    ],
)
def test_genes_are_read_by_what_takes_a_mask(asked: str, taken: str):
    assert over_columns(asked, torch.ones(2, 3, dtype=torch.bool), 4).implementation == taken


def test_columns_keep_the_order_of_the_genes():
    wanted = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    places, filled = columns_of(wanted, 4)
    assert places.tolist() == [[0, 1, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert filled.tolist() == [[False, True, True, True], [False] * 4, [False, True, False, False]]


@attentions
def test_padding_changes_nothing_whatever_gene_stands_there(attention: str):
    model, cells = latent_model(attn_implementation=attention), tiny_cells()
    padded = {
        "gene_ids": F.pad(cells["gene_ids"], (0, 7), value=3),
        "tokens": F.pad(cells["tokens"], (0, 7), value=NUM_TOKENS + 1),
        "is_pad": F.pad(cells["is_pad"], (0, 7), value=True),
        "counts": F.pad(cells["counts"], (0, 7)),
    }
    with torch.no_grad():
        expected = model(**(cells | {"is_pad": None})).logits
        torch.testing.assert_close(model(**padded).logits[:, :20], expected, **CLOSE)


@pytest.mark.parametrize("token", [pytest.param(t, id=n) for t, n in [(0, "zero"), (7, "hidden"), (8, "pad")]])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cell_in_which_nothing_is_read_works(token: int, attention: str):
    model, cells = latent_model(attn_implementation=attention).train(), tiny_cells()
    cells["tokens"][:2], cells["counts"][:2], cells["is_pad"][:2] = token, 0, token == NUM_TOKENS + 1
    logits = model(**cells).logits
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.latent_read.null.grad.abs().max() > 0


def test_hidden_counts_do_not_reach_the_logits_and_visible_ones_do():
    model, rng = without_pathway(latent_model()), np.random.default_rng(3)
    tokenizer = make_tokenizer("rank", NUM_TOKENS)
    counts = rng.poisson(1.5, size=(4, NUM_GENES)).astype(np.int32)
    batch = batch_from_csr(sp.csr_matrix(counts), np.arange(NUM_GENES), tokenizer)
    hidden = torch.from_numpy(rng.random(counts.shape) < 0.5)

    def logits(change: Tensor) -> Tensor:
        changed = replace(batch, counts=batch.counts + change.int() * 5)
        return hide(changed, hidden).predict(lambda *arguments: model(*arguments).logits, tokenizer)

    expected = logits(torch.zeros_like(hidden))
    assert torch.equal(logits(hidden), expected)
    one_visible = torch.zeros_like(hidden)
    one_visible[torch.arange(4), (~hidden & (batch.counts == 0)).int().argmax(dim=1)] = True
    assert ((logits(one_visible) - expected).abs().amax(dim=2) * hidden).amax(dim=1).min() > 1e-3
    left_in = {"gene_ids": batch.gene_ids, "tokens": batch.tokens.masked_fill(hidden, NUM_TOKENS), "is_pad": None}
    clean = model(**left_in, counts=batch.counts * ~hidden).logits
    assert torch.equal(model(**left_in, counts=batch.counts).logits, clean)


def test_the_bound_is_that_of_the_fullest_cell():
    tokens = torch.tensor([[0, 1, 6, NUM_TOKENS, 0], [2, 0, 3, 1, NUM_TOKENS + 1], [0, 0, 0, 0, 0]])
    assert most_nonzero(tokens.numpy(), NUM_TOKENS) == 3
    assert most_nonzero(tokens.to(torch.int8).numpy(), NUM_TOKENS) == 3  # as the loader gives them
    assert most_nonzero(tokens[:0].numpy(), NUM_TOKENS) == 0


@attentions
@pytest.mark.parametrize("bf16", [False, True])
def test_hidden_counts_do_not_reach_the_logits_through_the_bound(attention: str, bf16: bool):
    """It is that of whole cells, the hidden counts included: from visible ones alone to all genes nonzero."""
    model, generator = latent_model(attn_implementation=attention), torch.Generator().manual_seed(0)
    gene_ids, tokens = (torch.randint(size, (4, 300), generator=generator) for size in (NUM_GENES, NUM_TOKENS))
    hidden = torch.rand(4, 300, generator=generator) < 0.7
    shown = {"gene_ids": gene_ids, "tokens": tokens.masked_fill(hidden, NUM_TOKENS), "is_pad": None}
    widths = []
    model.latent_read.attention.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[1].shape[1]))

    def logits(whole: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
            return model(**shown, counts=tokens * ~hidden, max_nonzero=most_nonzero(whole.numpy(), NUM_TOKENS)).logits

    expected = logits(tokens.masked_fill(hidden, 0))
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        is_drawn = hidden & (torch.rand(4, 300, generator=generator) < share)
        whole = torch.where(hidden, is_drawn.long(), tokens)
        torch.testing.assert_close(logits(whole), expected, rtol=1e-6, atol=1e-6)
    assert len(set(widths)) > 2, "the bound is in use"


def assert_starts_at_the_marginal(model: MdscModel) -> None:
    zero = {name for name, module in model.named_modules() if isinstance(module, ZeroLinear)}
    assert {"latent_read.modulation", "latent_readout.modulation", "final.head"} <= zero
    for name in zero:
        assert all(parameter.eq(0).all() for parameter in model.get_submodule(name).parameters()), name
    assert model.latent_read.latents.std() > 0.3
    assert model.latent_read.null.std() > 0.1
    cells = tiny_cells()
    assert torch.equal(model(**cells).logits, model.output_bias(cells["gene_ids"]))
    x, latents = torch.randn(2, 20, 16), torch.randn(2, 5, 16)
    assert torch.equal(model.latent_readout(x, latents, torch.randn(2, 16), Attending("sdpa", None)), x)


def test_a_new_model_is_the_gene_marginal_also_where_a_file_lacks_its_weights(tmp_path: Path):
    model = MdscModel(tiny_config(**LATENT)).eval()
    assert_starts_at_the_marginal(model)
    model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith(("latent_", "final"))}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = MdscModel.from_pretrained(tmp_path, output_loading_info=True)
    assert_starts_at_the_marginal(loaded.eval())


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path):
    model = latent_model(dropout=0.1, **CONDITIONS)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    cells = tiny_cells() | {"categories": {"drug": torch.tensor([0, 1, 2])}}
    assert torch.equal(loaded(**cells).logits, model(**cells).logits)
    assert (loaded.config.backbone, loaded.config.num_latents) == ("latent", 5)


def test_the_other_backbone_has_the_weights_that_it_had():
    dit, latent = (
        {name.split(".")[0] for name, _ in model.named_parameters()} for model in (tiny_model(), latent_model())
    )
    assert latent - dit == {"latent_read", "latent_readout"}
    assert dit <= latent


@pytest.mark.parametrize("wrong", [{"backbone": "perceiver"}, {"num_latents": 0}])
def test_a_backbone_that_does_not_exist_is_an_error(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny_config(**wrong)


def test_under_bf16_the_head_stays_float32():
    model, cells = latent_model(hidden_size=32), tiny_cells(batch=16)
    with torch.no_grad():
        expected = model(**cells).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**cells).logits
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.3


def test_twenty_thousand_genes_are_filled_in_one_pass():
    genes = 20_000
    model = MdscModel(MdscConfig(num_genes=genes, num_tokens=8, hidden_size=16, num_heads=2, num_layers=1, **LATENT))
    counts = torch.from_numpy(np.random.default_rng(0).poisson(0.1, (1, genes)).astype(np.int32))
    visible = torch.arange(genes)[None] % 2 == 0
    nothing = torch.zeros_like(visible)
    evidence = Evidence(torch.arange(genes)[None], counts * visible, visible, nothing, torch.zeros(1, dtype=torch.long))
    widths = []
    model.latent_read.attention.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[1].shape[1]))
    predict = lambda *arguments: model.eval()(*arguments).logits  # noqa: E731
    filled = fill(predict, make_tokenizer("rank", 8), evidence, SamplerOptions(num_steps=2))
    assert torch.equal(filled.draws[0][visible], counts[visible])
    assert len(widths) == 3  # two steps and the mean, with all genes each
    assert widths[0] < 1100  # of 10,000 visible ones


def train(folder: Path, steps: int, **changes):
    """The trainer after `steps` steps on the tiny shards."""
    config = run_config(folder, **changes.pop("train", {}))
    config = replace(config, data=replace(config.data, **changes.pop("data", {})))
    trainer, loader = tiny_trainer(replace(config, model=replace(config.model, **(LATENT | changes))))
    batches = loader.iterate()
    for step in range(steps):
        trainer.step(step, next(batches))
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    tiny_shards(folder)
    return folder


def test_micro_batches_change_nothing(folder: Path):
    whole = train(folder, 4, dropout=0.2)
    parts = train(folder, 4, dropout=0.2, train={"batch_size": 4})
    for mine, theirs in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4)
    assert (whole.model.latent_read.modulation.weight != 0).any()


@pytest.mark.parametrize("gene_draw", ["detection", "expressed"])
def test_the_trainer_tells_how_many_genes_are_read(folder: Path, gene_draw: str, monkeypatch):
    told = []
    original = LatentRead.forward

    def watched(self, x, tokens, condition, implementation, max_nonzero):
        told.append((max_nonzero, int(is_nonzero(tokens, self.num_tokens).sum(dim=1).max())))
        return original(self, x, tokens, condition, implementation, max_nonzero)

    monkeypatch.setattr(LatentRead, "forward", watched)
    trainer = train(folder, 2, data={"gene_draw": gene_draw})
    trainer._validate(2)
    trainer._hear(all_steps=True)
    assert trainer.guard.skipped == 0
    assert len(told) > 3
    assert all(bound is not None and bound >= most for bound, most in told)


def test_the_pathway_phase_leaves_the_latents_alone(folder: Path):
    trainer = train(folder, 2, train={"pathway_steps": 2})
    parts = [p for name, p in trainer.model.named_parameters() if name.startswith(("latent_", "blocks", "final"))]
    assert not any(parameter in trainer.optimizer.state for parameter in parts)
    trainer = train(folder, 3, train={"pathway_steps": 2})
    parts = [p for name, p in trainer.model.named_parameters() if name.startswith(("latent_", "blocks", "final"))]
    assert all(parameter in trainer.optimizer.state for parameter in parts)


def test_the_number_of_latents_is_checked(folder: Path):
    config = run_config(folder)
    with pytest.raises(UserError, match=r"--model\.num-latents is 0"):
        check(replace(config, model=replace(config.model, num_latents=0)), 1)


def test_the_latents_learn_what_the_pathway_does_not_tell(tmp_path: Path, monkeypatch):
    """Cells of equal depth, a cell state that is always zero, no evidence: what is learned comes through latents."""
    simulation = SimulationConfig(
        num_cells=1500, num_genes=48, num_types=2, num_programs=2, program_size=2.0, genes_per_drug=0,
        median_depth=60.0, depth_spread=0.01,
    )  # fmt: skip
    simulate_shards(Truth.of(simulation), tmp_path / "shards")
    monkeypatch.setattr(CellState, "pool", lambda self, gene_ids, *_: torch.zeros(len(gene_ids), 4))
    config = run_config(tmp_path, max_steps=110, learning_rate=1e-2, ema_decay=0.9, global_batch_size=32)
    config = replace(config, model=replace(config.model, factor_size=0, hidden_size=32, **LATENT))
    config = replace(config, data=replace(config.data, validation_fraction=0.1))
    config = replace(config, validation=replace(config.validation, num_cells=120))
    trainer, loader = tiny_trainer(config)

    def nll(model: MdscModel) -> float:
        predict = lambda *inputs: model(*inputs).logits  # noqa: E731
        return validate(predict, trainer.task.validation_cells, trainer.task.tokenizer, (0.5,), batch_size=64)[0.5].nll

    at_the_start = nll(trainer.model.eval())  # the gene marginal
    trainer.model.train()
    batches = loader.iterate()
    for step in range(110):
        trainer.step(step, next(batches))
    with trainer.ema.applied() as averaged:
        assert nll(averaged) < at_the_start - 0.05
