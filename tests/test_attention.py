"""Attention by name: the same numbers from the same weights, pads that nobody sees, and what to do where one lacks."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import tiny_checkpoint
from tiny_model import NUM_GENES, NUM_TOKENS, tiny_cells, tiny_config, tiny_model
from tiny_run import flags, tiny_shards
from tiny_run import tiny_config as tiny_run_config
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, modeling_flash_attention_utils

from mdsc.checkpoint import load_checkpoint, save_checkpoint
from mdsc.cli import main
from mdsc.config.schema import ModelConfig, TrainConfig
from mdsc.errors import UserError
from mdsc.evaluation.pooled import pooled_config
from mdsc.model import attention
from mdsc.model.attention import BACKENDS, Attending, attending, padding_mask
from mdsc.model.blocks import Attention
from mdsc.model.modeling import MdscModel
from mdsc.training.option_checks import check

ROOT = Path(__file__).resolve().parents[1]
CLOSE = {"rtol": 0, "atol": 1e-5}
ON_CPU = ["sdpa", "sdpa_flash", "sdpa_math", "flex_attention", "eager"]
ON_CUDA = [name for name in BACKENDS if name != "eager"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.fixture(autouse=True)
def _nothing_was_said():
    attention._say.cache_clear()


@contextmanager
def uncompiled_flex() -> Iterator[None]:
    """transformers compiles flex_attention, which takes a minute; the same formula runs without."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def cells_with_pads(genes: int, pads: int) -> dict[str, Tensor]:
    """Pads in the first cell, or None for them."""
    cells = tiny_cells(genes=genes)
    if not pads:
        return cells | {"is_pad": None}
    cells["is_pad"][0, genes - pads :] = True
    cells["tokens"][0, genes - pads :] = NUM_TOKENS + 1
    cells["counts"][0, genes - pads :] = 0
    return cells


@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "sdpa"])
@pytest.mark.parametrize("pads", [0, 6])
@pytest.mark.parametrize("genes", [1, 20, 37])
def test_the_same_weights_give_the_same_logits(name: str, pads: int, genes: int):
    cells = cells_with_pads(genes, min(pads, genes - 1))
    model = tiny_model()
    with torch.no_grad(), uncompiled_flex():
        expected = model(**cells).logits
        model.set_attn_implementation(name)
        found = model(**cells).logits
    assert model.config._attn_implementation == name
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sdpa", "sdpa_flash", "sdpa_math"])
@pytest.mark.parametrize("pads", [0, 6])
def test_the_same_weights_have_the_same_gradients(name: str, pads: int):
    cells = cells_with_pads(37, pads)
    gradients = []
    for implementation in ("eager", name):
        model = tiny_model(attn_implementation=implementation)
        F.log_softmax(model(**cells).logits, dim=-1)[1:].mean().backward()
        gradients.append(model.blocks[0].attention.qkv.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def attention_of(name: str, x: Tensor, is_pad: Tensor | None) -> Tensor:
    torch.manual_seed(0)
    layer = Attention(tiny_config(hidden_size=x.shape[-1], attn_implementation=name))
    with torch.no_grad(), uncompiled_flex():
        mask = None if is_pad is None else padding_mask(name, is_pad, x.dtype)
        return layer(x, Attending(name, mask))


@pytest.fixture
def _flash_by_formula(monkeypatch):
    """The two functions of flash-attn as transformers calls them, in plain PyTorch; causal unless told otherwise."""

    def flash(q, k, v, dropout_p=0.0, softmax_scale=None, causal=True):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale, is_causal=causal).transpose(1, 2)

    def flash_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=True
    ):
        cells = [x.split(cu_seqlens_q.diff().tolist()) for x in (q, k, v)]
        parts = [
            flash(*(x[None] for x in cell), dropout_p, softmax_scale, causal)[0] for cell in zip(*cells, strict=True)
        ]
        return torch.cat(parts)

    utils = modeling_flash_attention_utils
    functions = (flash, flash_varlen, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *_, **__: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    yield
    utils._loaded_implementation = None


@pytest.mark.usefixtures("_flash_by_formula")
@pytest.mark.parametrize("name", [*ON_CPU, "flash_attention_2", "flash_attention_3"])
def test_no_gene_looks_at_a_pad_and_every_gene_at_all_others(name: str):
    """transformers' functions are causal unless they are told otherwise."""
    x = torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(1))
    is_pad = torch.zeros(2, 21, dtype=torch.bool)
    is_pad[0, 15:] = True
    expected = attention_of("eager", x, is_pad)
    found = attention_of(name, x, is_pad)
    torch.testing.assert_close(found[~is_pad], expected[~is_pad], **CLOSE)
    torch.testing.assert_close(found[0, :15], attention_of(name, x[:1, :15], None)[0], **CLOSE)

    changed = x.clone()
    changed[:, 20] += 3
    moved = (attention_of(name, changed, is_pad) - found).abs().amax(dim=-1)
    assert moved[0, :15].max() == 0
    assert moved[1].min() > 1e-4


@pytest.mark.parametrize("name", ON_CPU)
def test_a_cell_of_pads_alone_is_no_nan(name: str):
    is_pad = torch.tensor([[True] * 9, [False] * 9])
    assert attention_of(name, torch.randn(2, 9, 32), is_pad).isfinite().all()


@pytest.fixture
def _no_flash(monkeypatch):
    for name in ("flash_attention_2", "flash_attention_3"):
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], module="no_such_module"))


@pytest.mark.usefixtures("_no_flash")
@pytest.mark.parametrize("load", [MdscModel.from_pretrained, AutoModel.from_pretrained])
def test_a_model_that_was_trained_with_flash_is_read_without_it(tmp_path: Path, caplog, load):
    model, cells = tiny_model(), tiny_cells()
    model.config._attn_implementation_internal = "flash_attention_2"  # as if it were there
    model.save_pretrained(tmp_path)
    assert "flash" not in (tmp_path / "config.json").read_text()
    expected = tiny_model()(**cells).logits
    assert torch.equal(load(tmp_path)(**cells).logits, expected)
    assert not caplog.messages

    config = json.loads((tmp_path / "config.json").read_text()) | {"attn_implementation": "flash_attention_2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        assert torch.equal(load(tmp_path)(**cells).logits, expected)
    assert caplog.messages == [
        "attention flash_attention_2: the package flash-attn is not installed; "
        "sdpa takes its place and gives the same numbers"
    ]


@pytest.mark.usefixtures("_no_flash")
def test_a_run_that_was_trained_with_flash_is_opened_and_compared_without_it(tmp_path: Path, caplog):
    run = TrainConfig(model=ModelConfig(attention="flash_attention_2"))
    save_checkpoint(tmp_path, replace(tiny_checkpoint(["A", "B", "C"]), config=run))
    loaded = load_checkpoint(tmp_path)
    assert loaded.config.model.attention == "flash_attention_2"
    assert loaded.model.config._attn_implementation == "sdpa"
    check(pooled_config(loaded.config, "shards", "run", 10), num_processes=1)
    assert not caplog.messages


@pytest.mark.usefixtures("_no_flash")
def test_what_was_asked_for_by_name_is_an_error(tmp_path: Path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"flash-attn is not installed.\nTo get it: pip install 'mdsc\[flash\]'"):
        MdscModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match="flash-attn-3 is not installed"):
        model.set_attn_implementation("flash_attention_3")
    with pytest.raises(ValueError, match="flash_atention"):
        model.set_attn_implementation("flash_atention")


@pytest.mark.usefixtures("_no_flash")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flash_attention_2", "mdsc[flash]"),
        pytest.param(
            "flex_attention", "no backward pass on a CPU", marks=pytest.mark.skipif("torch.cuda.is_available()")
        ),
        pytest.param("sdpa_cudnn", "CUDA GPUs alone", marks=pytest.mark.skipif("torch.cuda.is_available()")),
    ],
)
def test_training_with_what_cannot_run_is_a_mistake(tmp_path: Path, capsys, name: str, words: str):
    tiny_shards(tmp_path)
    config = tiny_run_config(tmp_path)
    assert main(["train", *flags(config), "--model.attention", name]) == 2
    told = capsys.readouterr().err
    assert f"--model.attention {name}" in told
    assert words in told
    assert "Traceback" not in told


def test_what_cannot_run_on_these_tensors_is_replaced_and_told_once(caplog):
    """A model that was trained on a GPU is validated, sampled or read elsewhere, and in float32."""
    x = torch.randn(2, 5, 8)
    for _ in range(2):
        assert attending("flash_attention_2", x, None) == Attending("sdpa", None)
    assert caplog.messages == [
        "attention flash_attention_2: it runs on CUDA GPUs alone; sdpa takes its place and gives the same numbers"
    ]
    assert attending("flex_attention", x, None).implementation == "sdpa"
    with torch.no_grad():
        assert attending("flex_attention", x, None).implementation == "flex_attention"
    on_gpu = {"is_half": True, "has_pads": False, "needs_grad": True}
    assert attention.unfit("flash_attention_2", "cuda", **on_gpu) is None
    assert "bf16" in attention.unfit("flash_attention_2", "cuda", **(on_gpu | {"is_half": False}))
    assert "pads" in attention.unfit("sdpa_flash", "cuda", **(on_gpu | {"has_pads": True}))


@needs_cuda
@pytest.mark.parametrize("name", ON_CUDA)
@pytest.mark.parametrize("pads", [0, 7])
def test_on_a_gpu_in_bf16_all_agree(name: str, pads: int):
    cells = cells_with_pads(NUM_GENES, pads)
    reason = attention.missing(name) or attention.unfit(
        name, "cuda", is_half=True, has_pads=bool(pads), needs_grad=True
    )
    if reason:
        pytest.skip(reason)
    cells = {key: None if value is None else value.cuda() for key, value in cells.items()}
    model = tiny_model(hidden_size=128).cuda()
    with torch.no_grad():
        expected = model(**cells).logits
    model.set_attn_implementation(name)
    with torch.autocast("cuda", torch.bfloat16):
        found = model(**cells).logits
    found.square().mean().backward()
    scale = expected.abs().max()
    real = slice(None) if cells["is_pad"] is None else ~cells["is_pad"]
    assert (found - expected)[real].abs().max() < 5e-2 * scale
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


ONE_GRAPH = """
import torch
from tiny_model import tiny_cells, tiny_model

for pads, backbone in ((0, "dit"), (6, "dit"), (6, "latent")):
    model, cells = tiny_model(num_layers=1, backbone=backbone).train(), tiny_cells(genes=21)
    cells["max_nonzero"] = 21
    cells["is_pad"][0, 21 - pads :] = True
    cells["is_pad"] = cells["is_pad"] if pads else None
    torch.compiler.reset()
    found = torch.compile(model, backend="eager", fullgraph=True)(**cells).logits
    found.sum().backward()
    torch.testing.assert_close(found, model(**cells).logits)
"""


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler():
    """A break in it would cost time at each layer. In a process of its own: checks of shapes are breaks too."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", ONE_GRAPH], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
