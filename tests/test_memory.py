"""What training takes is told beforehand: beside what is measured, with what is free, and where it does not suffice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peak_memory
import psutil
import pytest
import torch
from tiny_run import flags, tiny_config, tiny_shards, tiny_trainer, with_train

from mdsc.cli import main
from mdsc.config.schema import TrainConfig
from mdsc.model.configuration import MdscConfig
from mdsc.training import auto_batch
from mdsc.training.auto_batch import _blank_cells, estimate_of, settle_batch_size
from mdsc.training.memory_available import available_bytes, cgroup_rooms
from mdsc.training.memory_estimate import bytes_in_words, estimate_memory
from mdsc.training.memory_measure import LiveBytes, saved_bytes
from mdsc.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    tiny_shards(folder)
    return folder


def test_weights_gradients_moments_and_averages_are_exact(folder: Path):
    trainer, loader = tiny_trainer(tiny_config(folder))
    estimate = estimate_of(trainer, 4)
    held = []
    trainer.optimizer.register_step_post_hook(lambda *_: held.append(sum(p.grad.nbytes for p in trainer.parameters)))
    trainer.step(0, next(loader.iterate()))
    moments = [state[name].nbytes for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    parameters = sum(parameter.nbytes for parameter in trainer.parameters)
    kept_by_checkpoints = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
    assert estimate.weights == kept_by_checkpoints
    assert estimate.moments == sum(moments)
    assert [estimate.gradients] == held
    assert estimate.averaged == parameters
    assert estimate.copies == kept_by_checkpoints + 3 * parameters, "on a CPU what is saved is copied beside it"
    parts = (estimate.weights, estimate.gradients, estimate.moments, estimate.averaged, estimate.copies)
    assert estimate.total == sum(parts) + estimate.activations


def kept_by(trainer: Trainer, cells: int) -> int:
    batch = _blank_cells(cells, 48, CPU)
    return saved_bytes(lambda: trainer.task.losses(trainer.model, 0, batch)["loss"].sum(), trainer.model)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"attention": "eager"}, {"backbone": "latent", "num_latents": 8}])
def test_what_is_kept_for_the_backward_pass_is_as_told(folder: Path, precision: str, recomputed: bool, changes: dict):
    config = tiny_config(folder, precision=precision, gradient_checkpointing=recomputed)
    config = replace(config, model=replace(config.model, num_layers=3, hidden_size=48, **changes))
    trainer, _ = tiny_trainer(config)
    estimate, measured = estimate_of(trainer, 16), kept_by(trainer, 16)
    assert estimate.kept == pytest.approx(measured, rel=0.15)
    assert estimate.activations > estimate.kept
    if recomputed:
        plain, _ = tiny_trainer(with_train(config, gradient_checkpointing=False))
        assert measured < 0.7 * kept_by(plain, 16)


def test_telling_changes_nothing():
    config, before = MdscConfig(**peak_memory.SHAPE, attn_implementation="flex_attention"), torch.get_rng_state()
    estimate_memory(config, TrainConfig(), CPU, cells=2, genes=8, uses_bf16=False)
    assert config._attn_implementation == "flex_attention", "it is told for sdpa, which keeps as much"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_most_that_is_alive_is_a_convex_function_of_cells(folder: Path):
    """The search draws a line from one cell to all, and takes what is below it to fit."""
    trainer, _ = tiny_trainer(tiny_config(folder, global_batch_size=64))
    first, middle, last = (estimate_of(trainer, cells).activations for cells in (1, 16, 64))
    assert middle <= first + (last - first) * 15 / 63
    assert middle == pytest.approx(first + (last - first) * 15 / 63, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize(("bf16", "recomputed", "cells"), [(False, False, 48), (True, True, 128)])
def test_the_system_sees_the_same_peak(bf16: bool, recomputed: bool, cells: int):
    options = {"cells": cells, "bf16": bf16, "recomputed": recomputed}
    # Large blocks go back to the system at once; by default the C library keeps some of them.
    env = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "peak_memory.py"), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = with_train(TrainConfig(), gradient_checkpointing=recomputed)
    model = MdscConfig(**peak_memory.SHAPE)
    told = estimate_memory(model, config, CPU, cells=cells, genes=peak_memory.GENES, uses_bf16=bf16)
    assert int(done.stdout) == pytest.approx(told.activations, rel=0.15)


def test_bytes_are_alive_until_nobody_has_them():
    known = torch.zeros(100)
    with LiveBytes((known,)) as live:
        known.add_(1)
        one = torch.zeros(1000)
        view = one.view(10, 100)
        del one
        assert live.now == 4000
        (view * 2).sum()
        assert 8000 <= live.peak <= 8100
        assert live.now == 4000
        del view
        assert live.now == 0


def limited(folder: Path, limit: str, used: int, *, version: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    inactive = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 1\n{inactive} {cached}\n")


def test_limits_of_containers_are_kept(tmp_path: Path, monkeypatch):
    own, mount = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("1:cpu:/\n0::/job/step\n")
    limited(mount / "job" / "step", "max", 5, version=2)
    limited(mount / "job", "1000", 700, version=2, cached=100)
    assert list(cgroup_rooms(own, mount)) == [400], "a limit holds for all below it"
    own.write_text("5:memory:/docker/abc\n")
    limited(mount / "memory", "800", 900, version=1)
    assert list(cgroup_rooms(own, mount)) == [0], "in a container its own group is the root"
    assert list(cgroup_rooms(tmp_path / "none", mount)) == []
    monkeypatch.setattr("mdsc.training.memory_available.cgroup_rooms", lambda: [3000])
    assert available_bytes(CPU) == 3000
    assert available_bytes(CPU, 3) == 1000
    monkeypatch.setattr("mdsc.training.memory_available.cgroup_rooms", list)
    assert 0 < available_bytes(CPU) <= psutil.virtual_memory().total


def test_the_line_before_the_start_warns_where_a_given_size_may_not_fit(folder: Path, monkeypatch):
    trainer, _ = tiny_trainer(tiny_config(folder, batch_size=8))
    said = []
    settle_batch_size(trainer, said.append)
    assert trainer.micro_batch_size == 8
    assert "activations of 8 cells" in said[0]
    assert bytes_in_words(estimate_of(trainer, 8).total) in said[0]
    assert "suffice" not in said[0]
    monkeypatch.setattr(auto_batch, "available_bytes", lambda *_: 10)
    settle_batch_size(trainer, said.append)
    assert "it may not suffice: try --train.batch-size auto, --train.gradient-checkpointing" in said[1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total of 4 GiB of"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_later_is_a_message(folder: Path, tmp_path: Path, monkeypatch, capsys, error: RuntimeError):
    step = Trainer.step

    def failing(self, number, batch):
        if number == 3:
            raise error
        step(self, number, batch)

    monkeypatch.setattr(Trainer, "step", failing)
    options = ["--output-dir", str(tmp_path / "run"), "--train.gradient-checkpointing"]
    assert main(["train", *flags(tiny_config(folder)), *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: out of memory: ")
    for words in ("Try --train.batch-size auto, FSDP2", "--data.num-genes", "With --resume auto"):
        assert words in message
    assert "Traceback" not in message


def test_other_failures_stay_what_they_are(folder: Path, tmp_path: Path, monkeypatch):
    def failing(self, number, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["train", *flags(tiny_config(folder)), "--output-dir", str(tmp_path / "run")])
