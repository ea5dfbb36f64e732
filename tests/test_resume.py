"""A run that was killed, or stopped, or has changed its processes, ends as the one that nobody touched: to the bit."""

import json
import os
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import differences, metrics
from safetensors import SafetensorError
from test_yaml_flags import options
from tiny_run import flags, tiny_config, tiny_shards, tiny_trainer

from mdsc.checkpoint import load_checkpoint
from mdsc.cli import main
from mdsc.config.schema import TrainConfig
from mdsc.training import run_saver, state_files
from mdsc.training.resume import MAY_CHANGE, changed_options, find_state
from mdsc.training.state_files import best_step, read_state, remove_old_states, saved_steps, state_folder, write_state
from mdsc.training.tracking import Tracker, read_metrics
from mdsc.training.trainer import Trainer
from mdsc.training.trainer_state import facts_of, restore

OPTIONS = ("--train.save-every", "4", "--train.validate-every", "3", "--train.log-every", "5", "--data.workers", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_shards(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Path:
    assert train(folder, folder / "unbroken") == 0
    return folder / "unbroken"


def arguments(folder: Path, run: Path, *options: str) -> list[str]:
    """12 steps in both phases, with dropout; a line of averages that a state cuts in two."""
    config = tiny_config(folder, max_steps=12, pathway_steps=5)
    dropout = ("--model.dropout", "0.1", "--model.state-dropout", "0.1")
    return [*flags(replace(config, output_dir=str(run))), *OPTIONS, *dropout, *options]


def train(folder: Path, run: Path, *options: str) -> int:
    return main(["train", *arguments(folder, run, *options)])


def copied(unbroken: Path, place: Path, *, until: int) -> Path:
    """The run as it would be if it had been killed after step `until` was saved, some steps later."""
    run = place / "run"
    shutil.copytree(unbroken, run)
    for step in saved_steps(run):
        if step > until:
            shutil.rmtree(state_folder(run, step))
    return run


@pytest.mark.parametrize("until", [4, 8, 12])
def test_a_run_goes_on_to_the_bit(folder: Path, unbroken: Path, tmp_path: Path, capsys, until: int):
    run = copied(unbroken, tmp_path, until=until)
    assert train(folder, run, "--resume", "auto") == 0
    said = capsys.readouterr().out
    assert f"going on from step {until}" in said
    assert ("that is all of --train.max-steps" in said) == (until == 12)
    assert differences(unbroken, run) == []
    assert (run / "training.yaml").read_text() == (unbroken / "training.yaml").read_text().replace(
        str(unbroken), str(run)
    )


def test_all_counters_come_back(folder: Path):
    one, other = (tiny_trainer(tiny_config(folder))[0] for _ in range(2))
    one.guard.skipped, one.guard.in_a_row = 5, 3
    one.is_validation_due = False
    one.last_validation, one.best_validation = {"step": 4, "score": 2.0}, {"step": 2, "score": 1.5}
    one.ema.num_updates = 7
    one.spikes.window.add(4, 2.0, 1.0)
    one.spikes.window.count = 2

    def told(trainer: Trainer) -> dict:
        facts = json.loads(json.dumps(facts_of(trainer)))
        del facts["averages"]["seconds"]
        return facts

    expected = told(one)
    assert expected != told(other)
    restore(other, json.loads(json.dumps(facts_of(one))) | {"step": 4}, None)
    assert told(other) == expected
    assert other.done == 4


def test_without_a_state_it_starts_anew_and_says_so(folder: Path, unbroken: Path, tmp_path: Path, capsys):
    assert train(folder, tmp_path / "run", "--resume", "auto") == 0
    assert "has no state yet, starting anew" in capsys.readouterr().out
    assert differences(unbroken, tmp_path / "run") == []


def test_a_kill_at_any_write_leaves_a_run_that_goes_on(folder: Path, unbroken: Path, tmp_path: Path, monkeypatch):
    """The folder is copied before each fsync and rename of every save, as a kill would leave it; five copies go on."""
    run, copies, lock = tmp_path / "run", [], threading.Lock()

    def copying(act):
        def acts(*arguments):
            with lock:
                if (run / state_files.FOLDER).exists():
                    copies.append(tmp_path / f"copy-{len(copies)}")
                    shutil.copytree(run, copies[-1])
            return act(*arguments)

        return acts

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", copying(os.fsync))
        patch.setattr(os, "replace", copying(os.replace))
        assert train(folder, run) == 0
    assert len(copies) > 50
    chosen = random.Random(0).sample(copies[1:], 4) + copies[:1]
    for copy in chosen:
        assert train(folder, copy, "--resume", "auto") == 0
        assert differences(unbroken, copy) == [], copy.name
        assert not list((copy / state_files.FOLDER).glob(".*"))


def test_no_generator_has_a_state_that_matters(folder: Path):
    """What is random in training is keyed: nothing is drawn from the generators that a state does not hold."""
    config = tiny_config(folder, max_steps=4, pathway_steps=2)
    config = replace(config, model=replace(config.model, dropout=0.3, state_dropout=0.3))
    trainer, loader = tiny_trainer(config)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    trainer.run(loader.iterate(), save=lambda done: None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize("file", ["state.json", "training.safetensors", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_state_is_told_and_the_one_before_is_taken(unbroken: Path, tmp_path: Path, file: str, damage: str):
    run, said = copied(unbroken, tmp_path, until=8), []
    path = state_folder(run, 8) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    state = find_state(TrainConfig(output_dir=str(run), resume="auto"), said.append)
    assert state.folder == state_folder(run, 4)
    assert said[0].startswith(f"warning: {state_folder(run, 8)} is damaged (")
    assert "\n" not in said[0]
    assert not said[1:]


def test_a_run_goes_on_over_a_damaged_state(folder: Path, unbroken: Path, tmp_path: Path, capsys):
    run = copied(unbroken, tmp_path, until=8)
    (state_folder(run, 8) / "training.safetensors").write_bytes(b"")
    assert train(folder, run, "--resume", "auto") == 0
    assert "is damaged" in capsys.readouterr().out
    assert differences(unbroken, run) == []


def test_a_state_that_is_damaged_all_over_is_not_overwritten(folder: Path, unbroken: Path, tmp_path: Path, capsys):
    run = copied(unbroken, tmp_path, until=4)
    (state_folder(run, 4) / "state.json").write_text("{")
    assert train(folder, run, "--resume", "auto") == 2
    assert "none of the 1 states" in capsys.readouterr().err


def test_a_state_may_be_named_and_another_folder_written(folder: Path, unbroken: Path, tmp_path: Path, capsys):
    state, run = state_folder(unbroken, 4), tmp_path / "fork"
    assert train(folder, run, "--resume", str(state)) == 0
    assert differences(unbroken, run) == []
    assert train(folder, run, "--resume", str(tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_state_is_a_checkpoint(unbroken: Path):
    assert load_checkpoint(state_folder(unbroken, 8)).config.train.max_steps == 12


def test_starting_anew_sets_the_states_aside_until_it_has_saved(folder: Path, unbroken: Path, tmp_path: Path):
    run = copied(unbroken, tmp_path, until=12)
    assert train(folder, run, "--train.max-steps", "2", "--train.pathway-steps", "0") == 0
    assert saved_steps(run) == [2]
    assert not (run / state_files.REPLACED).exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--seed", "1"], "--seed is 1, but it was 0"),
        (["--train.learning-rate", "0.5"], "--train.learning-rate is 0.5, but it was 0.01"),
        (["--model.hidden-size", "32"], "--model.hidden-size is 32, but it was 16"),
        (["--train.global-batch-size", "8"], "--train.global-batch-size is 8, but it was 16"),
        (["--validation.mask-ratios", "0.5"], "--validation.mask-ratios is 0.5, but it was 0.2 0.5 0.8"),
        (["--seed", "1", "--model.dropout", "0"], "--model.dropout is 0.0, but it was 0.1"),
    ],
)
def test_other_options_are_named(folder: Path, unbroken: Path, tmp_path: Path, capsys, given: list[str], words: str):
    run = copied(unbroken, tmp_path, until=4)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(folder, run, "--resume", "auto", *given) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_other_data_are_named(folder: Path, unbroken: Path, tmp_path: Path, capsys):
    tiny_shards(tmp_path)
    manifest = tmp_path / "shards" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["digest"]
    manifest.write_text(json.dumps(content | {"sources": [{"file": "other.h5ad", "cells": 240}]}))
    run = copied(unbroken, tmp_path, until=4)
    assert train(folder, run, "--resume", "auto", "--data.dir", str(tmp_path / "shards")) == 2
    assert f"--data.dir {tmp_path / 'shards'} has other cells" in capsys.readouterr().err


def test_what_may_change_may_change(folder: Path, unbroken: Path, tmp_path: Path):
    """Micro-batches, prefetch and how often to save leave the numbers; more steps come after those that were done."""
    run = copied(unbroken, tmp_path, until=8)
    changed = ["--train.batch-size", "8", "--data.prefetch", "0", "--train.save-every", "100", "--train.keep-last", "1"]
    assert train(folder, run, "--resume", "auto", *changed) == 0
    for mine, theirs in zip(metrics(run), metrics(unbroken), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert 12 in saved_steps(run)
    assert set(saved_steps(run)) <= {12, best_step(run)}
    assert train(folder, run, "--resume", "auto", "--train.max-steps", "14") == 0
    assert read_metrics(run)[-1]["step"] == 14


def test_options_are_compared_one_by_one():
    saved = {"seed": 0, "train": {"beta2": 0.9, "max_steps": 3}, "gone": {"since": 1}}
    assert changed_options(saved, TrainConfig()) == [("train.beta2", 0.9, 0.99)]
    assert set(options(TrainConfig)) >= MAY_CHANGE


def test_lines_of_later_steps_are_cut_off(unbroken: Path, tmp_path: Path):
    run = copied(unbroken, tmp_path, until=8)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 10, "lo')  # a machine went down in mid-line
    assert max(line["step"] for line in json_lines(run)) == 12
    config = TrainConfig(output_dir=str(run), resume="auto")
    with Tracker(config, find_state(config, print)):
        pass
    assert read_metrics(run) == [line for line in read_metrics(unbroken) if line["step"] <= 8]


def json_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]


def states(run: Path, scores: dict[int, float | None]) -> None:
    for step, score in scores.items():
        facts = {"validation": {"last": None if score is None else {"step": step, "nll": score}}}
        write_state(run, step, lambda folder: (folder / "x").write_text("1"), facts)


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path):
    states(tmp_path, {1: None, 2: 0.5, 3: 0.9, 4: 0.8, 5: 0.7, 9: 0.1})
    assert best_step(tmp_path) == 9
    remove_old_states(tmp_path, 5, keep_last=2)  # 9 is of a way that was not taken
    assert saved_steps(tmp_path) == [2, 4, 5]
    assert best_step(tmp_path) == 2
    assert read_state(state_folder(tmp_path, 4))["step"] == 4


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("tensors", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("facts", OSError(30, "Read-only file system")),
        ("checkpoint", OSError(28, "No space left on device")),
    ],
)
def test_a_disk_that_takes_no_more_is_told_and_earlier_states_stay(
    folder: Path, unbroken: Path, tmp_path: Path, capsys, monkeypatch, place: str, error: Exception
):
    run, written = tmp_path / "run", []

    def full(act, first: int):
        def acts(*arguments):
            written.append(1)
            if len(written) >= first:
                raise error
            return act(*arguments)

        return acts

    with monkeypatch.context() as patch:
        if place == "tensors":
            patch.setattr(run_saver, "save_file", full(run_saver.save_file, 2))
        elif place == "facts":
            patch.setattr(state_files, "_to_disk", full(state_files._to_disk, 14))
        else:
            patch.setattr(run_saver, "save_checkpoint", full(run_saver.save_checkpoint, 4))
        assert train(folder, run) == 2
    message = capsys.readouterr().err
    assert f"--output-dir {run} cannot be written: {getattr(error, 'strerror', error)}" in message
    assert "--resume auto" in message
    assert saved_steps(run)[0] == 4
    assert not list((run / state_files.FOLDER).glob(".*"))
    assert train(folder, run, "--resume", "auto") == 0
    assert differences(unbroken, run) == []


def test_a_folder_that_cannot_be_made_is_told(folder: Path, capsys):
    assert train(folder, Path("/proc/run")) == 2
    message = capsys.readouterr().err
    assert "--output-dir /proc/run cannot be written" in message


def test_saving_does_not_wait_for_the_disk_and_the_next_one_waits_for_the_last(
    folder: Path, tmp_path: Path, monkeypatch
):
    """The disk takes its time with the first state; training goes on to the second save, and no further."""
    reached, slow = [], run_saver.save_file

    def save_file(tensors, path):
        if not reached:
            assert done.wait(20), "training waited for the disk"
        reached.append(path.parent.name)
        slow(tensors, path)

    done = threading.Event()
    take = run_saver.HostCopy.take
    steps = []

    def taken(self, trainer):
        assert len(reached) == len(steps), "the copy is overwritten while it is written"
        steps.append(trainer.done)
        take(self, trainer)

    def step_is_done(self, step: int):
        if step >= 7:
            done.set()

    monkeypatch.setattr(run_saver, "save_file", save_file)
    monkeypatch.setattr(run_saver.HostCopy, "take", taken)
    monkeypatch.setattr("mdsc.training.progress.RunProgress.done", step_is_done)
    assert train(folder, tmp_path / "run") == 0
    assert steps == [4, 8, 12]
