"""Two processes, with a copy of the weights each or a shard: they train, save and go on as one process does."""

import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_runs import LIMIT, ForkServer
from run_files import differences, metrics, tensors
from safetensors.torch import load_file
from tiny_run import flags, tiny_config, tiny_shards, tiny_trainer
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from mdsc.checkpoint import load_checkpoint
from mdsc.errors import UserError
from mdsc.training.ema import Ema
from mdsc.training.sharding import asked_for_sharding, make_accelerator, reshard
from mdsc.training.state_files import TENSORS, saved_steps, state_folder
from mdsc.training.tracking import read_metrics
from mdsc.training.trainer_state import HostCopy
from mdsc.training.validation import share_of

STEPS = 8
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` tells its processes (test_launch_configs.py)."""
KINDS = {"one": {"processes": 1}, "ddp": {}, "fsdp": SHARDED}
FILES = (TENSORS, "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_shards(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="module")
def runs(folder: Path, server: ForkServer) -> dict[str, Path]:
    """An unbroken run of each kind."""
    for kind, how in KINDS.items():
        said = server.finish(folder, arguments(folder, folder / kind), **how)
        assert (" (weights sharded)," in said) == (kind == "fsdp")
    return {kind: folder / kind for kind in KINDS}


def arguments(folder: Path, run: Path, *options: str) -> list[str]:
    """8 steps in both phases, with dropout, accumulation, clipping, and validation cells that no 2 processes share."""
    config = tiny_config(folder, max_steps=STEPS, pathway_steps=3)
    config = replace(config, model=replace(config.model, num_layers=2), output_dir=str(run))
    every = ("--train.save-every", "2", "--train.validate-every", "3", "--train.keep-last", "9")
    sizes = ("--train.batch-size", "4", "--validation.num-cells", "23", "--train.clip-norm", "0.2")
    return [*flags(config), *every, *sizes, "--model.dropout", "0.1", "--train.precision", "fp32", *options]


def broken(run: Path, place: Path, *, after: int) -> Path:
    """The run as it would be if it had been killed after the state of this step."""
    shutil.copytree(run, place)
    for step in saved_steps(place):
        if step > after:
            shutil.rmtree(state_folder(place, step))
    return place


def assert_close(one: Path, other: Path) -> None:
    """Losses, norms and scores; raw and averaged weights, and moments."""
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-12)
    for name in FILES:
        mine, theirs = (load_file(state_folder(run, STEPS) / name) for run in (one, other))
        assert mine.keys() == theirs.keys()
        for key in mine:
            is_moment = key.startswith(("exp_avg", "exp_avg_sq"))
            # Steps are of 0.01: where a gradient is next to nothing, AdamW enlarges its rounding.
            atol = 2e-5 * (mine[key].abs().max().item() if is_moment else 1.0)
            torch.testing.assert_close(mine[key], theirs[key], rtol=2e-5, atol=atol, msg=key)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(runs: dict[str, Path], kind: str):
    assert_close(runs[kind], runs["one"])
    norms = [line["grad_norm"] for line in read_metrics(runs["one"]) if "loss" in line]
    assert min(norms) > 0.2, "clipping is part of what is compared"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--model.backbone", "latent", "--model.num-latents", "4"), id="latent"),
        # DDP rounds weights by autocast, FSDP2 its shards.
        pytest.param(("--train.gradient-checkpointing", "--train.precision", "bf16"), id="recomputed-in-bf16"),
    ],
)
def test_shards_train_as_copies_do(folder: Path, server: ForkServer, tmp_path: Path, options: tuple[str, ...]):
    runs = [tmp_path / kind for kind in ("ddp", "fsdp")]
    for run in runs:
        server.finish(folder, arguments(folder, run, *options), **KINDS[run.name])
    for mine, theirs in zip(*map(metrics, runs), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_shards_are_no_part_of_what_is_saved(runs: dict[str, Path]):
    assert load_checkpoint(runs["fsdp"]).config.train.max_steps == STEPS
    for step in saved_steps(runs["one"]):
        folders = [state_folder(runs[kind], step) for kind in KINDS]
        for name in FILES:
            shapes = [{key: len(value) for key, value in tensors(folder / name).items()} for folder in folders]
            assert shapes[0] == shapes[1] == shapes[2]
        assert len({(folder / "config.json").read_bytes() for folder in folders}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("saver", "loader"), [("fsdp", "ddp"), ("fsdp", "one"), ("one", "fsdp")])
def test_what_one_kind_saves_another_loads(
    folder: Path, server: ForkServer, runs: dict[str, Path], tmp_path: Path, saver: str, loader: str
):
    """To the bit, which a run shows that has nothing left to do but to save; and it goes on as if nothing had been."""
    last = state_folder(runs[saver], STEPS)
    server.finish(folder, arguments(folder, tmp_path / "copy", "--resume", str(last)), **KINDS[loader])
    for name in FILES:
        assert tensors(state_folder(tmp_path / "copy", STEPS) / name) == tensors(last / name)

    run = broken(runs[saver], tmp_path / "run", after=2)  # within the first phase: the blocks have no moments yet
    said = server.finish(folder, arguments(folder, run, "--resume", "auto"), **KINDS[loader])
    assert "going on from step 2" in said
    assert_close(run, runs["one"])


@pytest.mark.parametrize("after", [2, 6])
def test_shards_go_on_to_the_bit(folder: Path, server: ForkServer, runs: dict[str, Path], tmp_path: Path, after: int):
    run = broken(runs["fsdp"], tmp_path / "run", after=after)
    server.finish(folder, arguments(folder, run, "--resume", "auto"), **SHARDED)
    assert differences(runs["fsdp"], run) == []


@pytest.mark.slow
def test_averages_in_host_memory_are_the_same(folder: Path, server: ForkServer, runs: dict[str, Path], tmp_path: Path):
    for kind in ("fsdp", "one"):
        run = tmp_path / kind
        server.finish(folder, arguments(folder, run, "--train.ema-device", "cpu"), **KINDS[kind])
        assert differences(runs[kind], run) == []


def test_a_loss_that_is_no_number_on_one_process_moves_no_shard(folder: Path, server: ForkServer, tmp_path: Path):
    run = tmp_path / "run"
    server.finish(folder, arguments(folder, run, "--train.save-every", "1"), NAN_AT="4", **SHARDED)
    weights = [tensors(state_folder(run, step) / TENSORS) for step in (4, 5, 6)]
    assert weights[0] == weights[1] != weights[2]
    (event,) = [line for line in read_metrics(run) if "event" in line]
    assert (event["step"], event["cause"], event["cells"]) == (5, "loss", [5, 13])  # of both micro-batches
    assert read_metrics(run)[-2]["skipped_steps"] == 1


def test_sigterm_to_one_process_saves_all_shards(
    folder: Path, server: ForkServer, runs: dict[str, Path], tmp_path: Path
):
    run = tmp_path / "run"
    process = server.start(folder, arguments(folder, run), SLOW="0.1", **SHARDED)
    start = time.monotonic()
    while not saved_steps(run):
        assert time.monotonic() - start < LIMIT
        time.sleep(0.01)
    process.kill(signal.SIGTERM, ranks=(1,))
    assert process.wait() == [128 + signal.SIGTERM] * 2, process.said()
    server.finish(folder, arguments(folder, run, "--resume", "auto"), **SHARDED)
    assert differences(runs["fsdp"], run) == []


def test_sigterm_to_one_process_that_validates_stops_both(
    folder: Path, server: ForkServer, runs: dict[str, Path], tmp_path: Path
):
    """The other one would wait for its part of the weights for ever."""
    run = tmp_path / "run"
    process = server.start(folder, arguments(folder, run), STOP_AT="3", **SHARDED)
    assert process.wait() == [128 + signal.SIGTERM] * 2, process.said()
    assert saved_steps(run)[-1] == 3
    server.finish(folder, arguments(folder, run, "--resume", "auto"), **SHARDED)
    assert differences(runs["fsdp"], run) == []


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A mesh of this process."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@torch.no_grad()
def test_averages_and_shards_change_places_under_whole_weights(alone: DeviceMesh):
    """What a forward pass leaves whole is dropped, before averages come and after they have gone."""
    model, x = torch.nn.Linear(3, 3), torch.ones(1, 3)
    fully_shard(model, mesh=alone, reshard_after_forward=False)
    ema = Ema(model, 0.5)
    at_the_start = model(x).clone()
    reshard(model)
    for parameter in model.parameters():
        parameter.add_(1.0)
    trained = model(x).clone()
    with ema.applied():
        assert torch.equal(model(x), at_the_start)
    assert torch.equal(model(x), trained)
    assert not torch.equal(trained, at_the_start)


def test_processes_validate_equally_many_cells(folder: Path):
    _, loader = tiny_trainer(tiny_config(folder))
    cells = loader.validation_batch(23)
    shares = [share_of(cells, process, 5) for process in range(5)]
    assert {len(share) for share in shares} == {5}
    real = [index for share in shares for index in share.cell_index[~share.is_pad.all(dim=1)].tolist()]
    assert sorted(real) == cells.cell_index.tolist()
    whole = share_of(cells, 0, 1)
    assert torch.equal(whole.tokens, cells.tokens)
    assert torch.equal(whole.is_pad, cells.is_pad)


def test_only_the_main_process_holds_a_copy(folder: Path):
    trainer, _ = tiny_trainer(tiny_config(folder))
    trainer.accelerator = type("Other", (), {"is_main_process": False})
    copy = HostCopy()
    copy.take(trainer)
    assert not copy.tensors
    assert copy.model is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version 1: give 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: leave it out"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing: give --train"),
    ],
)
def test_what_is_not_done_is_said(monkeypatch, told: dict[str, str], words: str):
    for name, value in (SHARDED | told).items():
        monkeypatch.setenv(name, value)
    assert asked_for_sharding() is None, "a process alone has nobody to share with"
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for call in (asked_for_sharding, make_accelerator):  # before accelerate looks for GPUs, in vain
        with pytest.raises(UserError, match=words):
            call()
