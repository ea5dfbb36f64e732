"""--train.compile: the numbers of an eager run, one graph for all blocks, and a message where it cannot be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_runs import ForkServer
from run_files import differences, metrics
from tiny_run import flags, tiny_config, tiny_shards, tiny_trainer

from mdsc.cli import main
from mdsc.errors import UserError
from mdsc.training.compiled_blocks import require_compiler, told_failed_compilation, uncompiled
from mdsc.training.state_files import state_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    tiny_shards(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    """Folder of what is compiled, so that it is compiled once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_numbers_are_those_of_an_eager_run_from_one_graph(tmp_path: Path, cache: str):
    """Both phases, validation between steps, dropout, micro-batches, two blocks; recomputed blocks, attention eager."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "compiled_runs.py", tmp_path],
        env=env | {"TORCHINDUCTOR_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["loss"] < 1e-5, name
        assert found["weight"] < 1e-4, name
        assert found["validation"][0] == pytest.approx(found["validation"][1], rel=1e-6), name
        assert found["names"], name
        assert (found["graphs"], found["breaks"]) == (1, 0), name


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.slow
def test_two_processes_go_on_to_the_bit(folder: Path, server: ForkServer, tmp_path: Path, cache: str):
    runs = {name: tmp_path / name for name in ("eager", "unbroken", "resumed")}
    config = tiny_config(folder, max_steps=6, pathway_steps=2)
    for name, run in runs.items():
        if name == "resumed":
            shutil.copytree(runs["unbroken"], run)
            shutil.rmtree(state_folder(run, 6))
        arguments = [*flags(replace(config, output_dir=str(run))), "--train.save-every", "3", "--resume", "auto"]
        compiling = () if name == "eager" else ("--train.compile",)
        said = server.finish(tmp_path, [*arguments, *compiling], TORCHINDUCTOR_CACHE_DIR=cache)
    assert "going on from step 3" in said
    for compiled, eager in zip(metrics(runs["unbroken"]), metrics(runs["eager"]), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)
    assert differences(runs["unbroken"], runs["resumed"]) == []


def test_the_option_reaches_the_blocks_and_no_copy_of_them_shares_weights(folder: Path):
    for wanted in (False, True):
        trainer, _ = tiny_trainer(tiny_config(folder, compile=wanted))
        assert [block.is_compiled for block in trainer.model.blocks] == [wanted]
    assert not any("_orig_mod" in name for name in trainer.model.state_dict())


def test_flex_attention_stays_compiled_where_blocks_are_not(folder: Path):
    """Without a compiler it would hold all products of queries and keys."""
    config = tiny_config(folder, compile=True)
    flex = replace(config, model=replace(config.model, attention="flex_attention"))
    for options, stays in ((config, False), (flex, True), (tiny_config(folder), True)):
        assert isinstance(uncompiled(options), nullcontext) == stays


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_a_missing_compiler_is_a_message(device: str, variable: str, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(variable, "nowhere-cc -O2")
    with pytest.raises(UserError, match="there is no nowhere-cc here"):
        require_compiler(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU wants another compiler")
def test_it_is_told_before_anything_is_written(folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "nowhere-c++")
    run = tmp_path / "run"
    assert main(["train", *flags(tiny_config(folder)), "--output-dir", str(run), "--train.compile"]) == 2
    assert "--train.compile needs a C++ compiler" in capsys.readouterr().err
    assert not run.exists()


def test_a_compiler_that_fails_is_a_message(folder: Path):
    from torch._dynamo.exc import BackendCompilerFailed

    config = tiny_config(folder, compile=True)
    failure = BackendCompilerFailed(test_a_compiler_that_fails_is_a_message, RuntimeError("no Python.h"), None)
    with pytest.raises(UserError, match=r"torch.compile has failed .*no Python.h"), told_failed_compilation(config):
        raise failure
