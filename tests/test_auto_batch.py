"""--train.batch-size auto: the largest size that fits, the same on all processes, and a run that cannot tell."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_runs import ForkServer
from run_files import differences
from tiny_run import flags, tiny_config, tiny_shards, tiny_trainer

from mdsc.cli import main
from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.errors import UserError
from mdsc.training import auto_batch
from mdsc.training.auto_batch import CPU_CELLS, estimate_of, largest_that_fits, settle_batch_size, trial_fits
from mdsc.training.memory_measure import LiveBytes
from mdsc.training.trainer import Trainer

DIVISORS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    tiny_shards(folder)
    return folder


def recorded(fits: Callable[[int], bool]) -> tuple[Callable[[int], bool], list[int]]:
    tried = []

    def fits_and_tells(size: int) -> bool:
        tried.append(size)
        return fits(size)

    return fits_and_tells, tried


@pytest.mark.parametrize("start", DIVISORS)
@pytest.mark.parametrize("capacity", [0, 1, 5, 8, 23, 24, 1000])
def test_the_largest_that_fits_is_found_from_any_guess(start: int, capacity: int):
    fits, tried = recorded(lambda size: size <= capacity)
    expected = max((size for size in DIVISORS if size <= capacity), default=None)
    assert largest_that_fits(DIVISORS, start, fits) == expected
    assert len(tried) == len(set(tried)) <= len(DIVISORS)


@pytest.mark.parametrize("good", [{1, 2, 16}, {4, 48}, {2, 3, 8}, {1}, {48}])
@pytest.mark.parametrize("start", DIVISORS)
def test_surprises_end_with_a_size_that_was_seen_to_fit(start: int, good: set[int]):
    """Memory in pieces: 8 may fail where 16 does not."""
    fits, tried = recorded(lambda size: size in good)
    found = largest_that_fits(DIVISORS, start, fits)
    assert found is None or (found in good and found in tried)
    assert found is not None or 1 not in good
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize(("text", "size"), [("auto", "auto"), ("4", 4), ("None", None)])
def test_flag_and_yaml_take_a_number_or_auto(tmp_path: Path, text: str, size):
    file = tmp_path / "some.yaml"
    file.write_text(f"train:\n  batch_size: {'null' if size is None else text}\n")
    assert parse(TrainConfig, ["--config", str(file)]).train.batch_size == size
    assert parse(TrainConfig, ["--train.batch-size", text]).train.batch_size == size


def test_no_other_word_is_a_size(folder: Path, capsys):
    assert main(["train", *flags(tiny_config(folder)), "--train.batch-size", "most"]) == 2
    assert "auto" in capsys.readouterr().err


def lacking(trainer: Trainer, most: int) -> None:
    """From now on more than `most` cells do not fit."""
    losses = trainer.task.losses

    def with_little_memory(model, step, cells):
        if len(cells) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(model, step, cells)

    trainer.task.losses = with_little_memory


def settled(folder: Path, monkeypatch, *, most: int, **options) -> tuple[Trainer, list[str]]:
    """As on a GPU: sizes are tried."""
    monkeypatch.setattr(auto_batch, "_is_tried", lambda trainer: True)
    trainer, _ = tiny_trainer(tiny_config(folder, batch_size="auto", **options))
    lacking(trainer, most)
    said = []
    settle_batch_size(trainer, said.append)
    return trainer, said


def test_sizes_are_tried_until_one_fits(folder: Path, monkeypatch):
    trainer, (said,) = settled(folder, monkeypatch, most=5)
    assert trainer.micro_batch_size == 4
    assert "auto: 4 of 16 cells at once" in said
    # The estimate may be too careful, too.
    monkeypatch.setattr(auto_batch, "available_bytes", lambda *_: 1000)
    trainer, _ = settled(folder, monkeypatch, most=9)
    assert trainer.micro_batch_size == 8


def test_where_not_one_cell_fits_it_is_told_what_takes_less(folder: Path, monkeypatch):
    with pytest.raises(UserError) as told:
        settled(folder, monkeypatch, most=0)
    for word in ("not even one cell of 48 genes", "--train.gradient-checkpointing", "FSDP2", "--data.num-genes"):
        assert word in str(told.value)
    assert "--train.batch-size auto," not in str(told.value), "it is in use"


def test_a_trial_holds_what_later_steps_will(folder: Path, monkeypatch):
    trainer, _ = tiny_trainer(tiny_config(folder))
    weights = sum(parameter.nbytes for parameter in trainer.parameters)
    with LiveBytes(trainer.parameters) as live, auto_batch._room_taken(trainer, 1000):
        assert live.now == 1000 + 3 * weights  # gradients and two moments
    reserved = []
    monkeypatch.setattr(auto_batch, "trial_fits", lambda trainer, cells, reserve: not reserved.append(reserve))
    monkeypatch.setattr(auto_batch, "available_bytes", lambda *_: 10**9)
    trainer, _ = settled(folder, monkeypatch, most=16)
    assert reserved == [int((1 - auto_batch.CPU_SHARE) * (10**9 + auto_batch._held(trainer)))]


@pytest.mark.parametrize("pathway_steps", [0, 2, 6])
def test_a_trial_leaves_no_trace(folder: Path, pathway_steps: int):
    """Weights, gradients, moments, generators: the run after it is the same to the bit."""
    config = tiny_config(folder, pathway_steps=pathway_steps, batch_size=4)
    config = replace(config, model=replace(config.model, dropout=0.3, state_dropout=0.3))
    found = []
    for tries in (0, 2):
        trainer, loader = tiny_trainer(config)
        before, model = torch.get_rng_state(), [tensor.clone() for tensor in trainer.model.state_dict().values()]
        blocks_ran = []
        handle = trainer.model.blocks[0].register_forward_hook(lambda *_, ran=blocks_ran: ran.append(1))
        for _ in range(tries):
            assert trial_fits(trainer, 16, reserve=10)
        handle.remove()
        if tries:
            assert bool(blocks_ran) == (pathway_steps < 6), "the phase that takes most"
            lacking(trainer, 8)
            assert not trial_fits(trainer, 16)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(model, trainer.model.state_dict().values(), strict=True))
        assert all(parameter.grad is None and parameter.requires_grad for parameter in trainer.parameters)
        assert not trainer.optimizer.state
        batches = loader.iterate()
        for step in range(4):
            trainer.step(step, next(batches))
        found.append([parameter.clone() for parameter in trainer.parameters])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_on_a_cpu_the_estimate_decides(folder: Path, monkeypatch):
    config = tiny_config(folder, batch_size="auto", global_batch_size=64)
    trainer, _ = tiny_trainer(config)
    settle_batch_size(trainer, lambda line: None)
    assert trainer.micro_batch_size == CPU_CELLS, "more is not faster"
    held, need = auto_batch._held(trainer), estimate_of(trainer, 16).total
    for room, size in ((2 * need, 16), (2 * need - 100_000, 8), (estimate_of(trainer, 1).total, 1)):
        monkeypatch.setattr(auto_batch, "available_bytes", lambda *_, room=room: room - held)
        trainer, _ = tiny_trainer(config)
        settle_batch_size(trainer, lambda line: None)
        assert trainer.micro_batch_size == size
    monkeypatch.setattr(auto_batch, "available_bytes", lambda *_: 1000)
    with pytest.raises(UserError, match="not even one cell"):
        settle_batch_size(tiny_trainer(config)[0], lambda line: None)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def test_processes_agree_on_the_smallest_and_the_run_is_that_of_this_number(
    folder: Path, server: ForkServer, tmp_path: Path
):
    config = tiny_config(folder, max_steps=6, pathway_steps=2)
    trainer, _ = tiny_trainer(config)
    room = 2 * estimate_of(trainer, 2).total - auto_batch._held(trainer)
    auto, number = tmp_path / "auto", tmp_path / "number"
    arguments = [*flags(replace(config, output_dir=str(auto))), "--train.batch-size", "auto"]
    said = server.finish(tmp_path, arguments, ROOM=f"{10**9} {room}")
    (size,) = re.findall(r"auto: (\d+) of 8 cells at once", said)
    assert 1 < int(size) < 8, "process 1 has room for no more, process 0 for all"
    arguments = [*flags(replace(config, output_dir=str(number))), "--train.batch-size", size]
    server.finish(tmp_path, arguments)
    assert differences(auto, number) == []
