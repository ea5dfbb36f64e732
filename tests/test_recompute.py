"""--train.gradient-checkpointing: less is kept for the backward pass, and no gradient changes by a bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_runs import ForkServer
from run_files import differences
from tiny_model import tiny_cells, tiny_model
from tiny_run import flags, tiny_config, tiny_shards, tiny_trainer
from torch import Tensor

from mdsc.model.keyed_dropout import keyed_dropout
from mdsc.model.modeling import MdscModel
from mdsc.model.trunk_block import recompute_blocks
from mdsc.training.memory_measure import saved_bytes


def gradients(model: MdscModel, *, bf16: bool, dropout: bool = True) -> dict[str, Tensor]:
    cells = tiny_cells()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if dropout:
            with keyed_dropout(model, seed=1, step=2, cell_index=torch.arange(3)):
                logits = model(**cells).logits
        else:
            logits = model(**cells).logits
    # The keys are gone by now, as they are in training.
    logits.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("backbone", ["dit", "latent"])
def test_gradients_are_the_same_to_the_bit(attention: str, bf16: bool, backbone: str):
    model = tiny_model(dropout=0.4, state_dropout=0.2, attn_implementation=attention, backbone=backbone).train()
    expected = gradients(model, bf16=bf16)
    calls = []
    model.blocks[0].attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    recompute_blocks(model)
    found = gradients(model, bf16=bf16)
    assert len(calls) == 2, "once forward, once on the way back"
    assert found.keys() == expected.keys()
    assert "blocks.1.mlp.0.weight" in found
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_plain_dropout_is_repeated_too():
    model = tiny_model(dropout=0.4).train()
    torch.manual_seed(0)
    expected = gradients(model, bf16=False, dropout=False)
    recompute_blocks(model)
    torch.manual_seed(0)
    found = gradients(model, bf16=False, dropout=False)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("backbone", ["dit", "latent"])
def test_less_is_kept_and_nothing_is_computed_twice_in_evaluation(backbone: str):
    model, cells = tiny_model(num_layers=4, backbone=backbone).train(), tiny_cells()
    kept = saved_bytes(lambda: model(**cells).logits, model)
    recompute_blocks(model)
    assert saved_bytes(lambda: model(**cells).logits, model) < 0.5 * kept
    calls = []
    model.eval().blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**cells)
    assert len(calls) == 1


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_end_the_same_to_the_bit(server: ForkServer, tmp_path: Path, processes: int):
    """Through both phases, with dropout, accumulation, a step that is not finite, and on two processes."""
    tiny_shards(tmp_path)
    config = tiny_config(tmp_path, max_steps=8, pathway_steps=3)
    runs = [tmp_path / "plain", tmp_path / "recomputed"]
    bad_steps = "5" if processes == 2 else ""
    for run, options in zip(runs, ((), ("--train.gradient-checkpointing",)), strict=True):
        options += ("--model.dropout", "0.3", "--model.state-dropout", "0.2", "--train.batch-size", "4")
        arguments = [*flags(replace(config, output_dir=str(run))), *options]
        server.finish(tmp_path, arguments, processes=processes, NAN_AT=bad_steps)
    assert differences(*runs) == []


def test_the_option_reaches_the_blocks(tmp_path: Path):
    tiny_shards(tmp_path)
    for wanted in (False, True):
        trainer, _ = tiny_trainer(tiny_config(tmp_path, gradient_checkpointing=wanted))
        assert [block.is_recomputed for block in trainer.model.blocks] == [wanted]
