"""Pushes during a run: of one step each, one at a time, the newest wins; no hub, token or server can hurt the run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import torch
from hub_repo_stub import TOKEN, HubStub, files_with
from tiny_checkpoint import tiny_checkpoint
from tiny_run import flags, tiny_config, tiny_shards

import mdsc
from mdsc.checkpoint import save_checkpoint
from mdsc.cli import main
from mdsc.config.schema import HubConfig
from mdsc.hub.failures import without_secrets
from mdsc.publish import uploads as module
from mdsc.publish.snapshot import take_snapshot
from mdsc.publish.uploads import FOLDER, Uploads

SYMBOLS = [f"G{number}" for number in range(30)]
WEIGHTS = "model.safetensors"
CONFIG = HubConfig(repo="user/tiny")


def save(run: Path, step: int) -> bytes:
    """A checkpoint that is told by its weights."""
    checkpoint = tiny_checkpoint(SYMBOLS)
    torch.nn.init.constant_(checkpoint.model.output_bias.weight, float(step))
    save_checkpoint(run, checkpoint)
    return (run / WEIGHTS).read_bytes()


def wait_for(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def pushing(run: Path, said: list[str], config: HubConfig = CONFIG, **options) -> Iterator[Uploads]:
    options = {"pauses": (0.1,), "end_pauses": (0.1,)} | options
    with Uploads(config, run, said.append, **options) as uploads:
        yield uploads
    assert not (run / FOLDER).exists()
    assert uploads._process is None
    assert not uploads._thread.is_alive()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def test_the_newest_checkpoint_wins_and_each_push_is_of_one_step(hub: HubStub, run: Path):
    hub.delay_commits, said, saved = Event(), [], {}
    with pushing(run, said) as uploads:
        for step in (1, 2, 3):
            saved[step] = save(run, step)
            uploads.saved(step)
            if step == 1:
                wait_for(lambda: any(request.endswith("/commit/main") for request in hub.requests))
        save(run, 4)  # is not given: what was put by must not change
        hub.delay_commits.set()
    repo = hub.repos["user/tiny"]
    assert repo.private
    assert repo.messages == ["Step 1", "Step 3"]
    assert [files[WEIGHTS] for files in repo.commits[1:]] == [saved[1], saved[3]]
    assert "Optimiser steps: 3\n" in repo.files["README.md"].decode()
    assert [line.partition(" to ")[0] for line in said] == ["pushed step 1", "pushed step 3"]


def test_every_so_many_steps_and_the_last(hub: HubStub, run: Path):
    with pushing(run, [], replace(CONFIG, every=4)) as uploads:
        for step in (2, 4, 6, 8):
            save(run, step)
            uploads.saved(step)
            wait_for(lambda step=step: step % 4 or (hub.repos and f"Step {step}" in hub.repos["user/tiny"].messages))
        (run / "loss.png").write_bytes(b"picture")
        uploads.saved(9, is_last=True)
    assert hub.repos["user/tiny"].messages == ["Step 4", "Step 8", "Step 9"]
    assert ["loss.png" in files for files in hub.repos["user/tiny"].commits[1:]] == [False, False, True]


def test_a_hub_that_was_dead_gets_the_newest_when_it_is_back(hub: HubStub, run: Path):
    hub.die()
    said: list[str] = []
    with pushing(run, said) as uploads:
        save(run, 1)
        uploads.saved(1)
        wait_for(lambda: said)
        hub.start()
        wait_for(lambda: hub.repos and hub.repos["user/tiny"].messages)
    assert hub.repos["user/tiny"].messages == ["Step 1"]
    assert len([line for line in said if line.startswith("warning: hub: ")]) == 1, said
    assert "does not answer" in said[0]


def test_a_hub_that_dies_half_way_keeps_the_commit_before_and_gets_the_next(hub: HubStub, run: Path):
    said: list[str] = []
    with pushing(run, said, most_seconds=3) as uploads:
        first = save(run, 1)
        uploads.saved(1)
        wait_for(lambda: hub.repos and hub.repos["user/tiny"].messages)
        hub.cut_uploads = 1
        second = save(run, 2)
        uploads.saved(2)
        wait_for(lambda: any("step 2 was not pushed: the hub took longer than 3 s" in line for line in said))
        assert hub.repos["user/tiny"].files[WEIGHTS] == first
        hub.start()
    assert hub.repos["user/tiny"].messages == ["Step 1", "Step 2"]
    assert hub.repos["user/tiny"].files[WEIGHTS] == second


def test_a_run_that_is_asked_to_stop_waits_no_longer_than_it_says(hub: HubStub, run: Path):
    hub.delay_commits, said = Event(), []
    with pushing(run, said) as uploads:
        save(run, 1)
        uploads.saved(1)
        wait_for(lambda: any(request.endswith("/commit/main") for request in hub.requests))
        started = time.monotonic()
        uploads.close(patience=0.2)
        assert time.monotonic() - started < 5
    assert len(said) == 1
    assert f"step 1 is not on the hub; this pushes it:\n  mdsc push --checkpoint {run} --repo user/tiny" in said[0]
    hub.delay_commits.set()


def test_a_wrong_token_is_told_once_and_may_be_put_right(hub: HubStub, run: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_WrongWrongWrongWrong")
    said: list[str] = []
    with pushing(run, said) as uploads:
        for step in (1, 2):
            save(run, step)
            uploads.saved(step)
        wait_for(lambda: said)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.repos["user/tiny"].messages[-1] == "Step 2"
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == 1
    assert "does not accept the token (401): log in with `hf auth login`" in warnings[0]
    assert "hf_Wrong" not in "".join(said)


def test_what_cannot_be_pushed_is_given_up_at_the_end_and_told_how(hub: HubStub, run: Path):
    said: list[str] = []
    with pushing(run, said) as uploads:
        save(run, 1)
        hub.refuse_commits = 100
        uploads.saved(1, is_last=True)
    assert 2 <= 100 - hub.refuse_commits <= 5
    assert f"mdsc push --checkpoint {run} --repo user/tiny" in said[-1]
    assert len(said) == 2
    assert "not now, said the stub" not in hub.repos["user/tiny"].files


def test_a_run_that_fails_does_not_wait_for_its_hub(hub: HubStub, run: Path):
    hub.delay_commits, said, started = Event(), [], []

    def fail() -> None:
        with pushing(run, said) as uploads:
            save(run, 1)
            uploads.saved(1)
            wait_for(lambda: any(request.endswith("/commit/main") for request in hub.requests))
            started.append(time.monotonic())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert time.monotonic() - started[0] < 5
    assert "step 1 is not on the hub" in said[-1]
    assert not (run / FOLDER).exists()
    hub.delay_commits.set()


def test_a_repository_that_is_public_is_told_of(hub: HubStub, run: Path):
    said: list[str] = []
    with pushing(run, [], replace(CONFIG, private=False)):
        pass
    with pushing(run, said):
        pass
    assert "is PUBLIC, and stays so" in said[0]


def test_what_goes_wrong_here_does_not_reach_the_run(hub: HubStub, run: Path, monkeypatch):
    said: list[str] = []
    with pushing(run, said) as uploads:
        uploads.saved(1)  # there is no checkpoint
        save(run, 2)
        monkeypatch.setattr(module.sys, "executable", "/nowhere/python")
        uploads.saved(2)
        wait_for(lambda: any("step 2 was not pushed" in line for line in said))
        monkeypatch.undo()
    assert "step 1 was not put by" in said[0]


def test_a_snapshot_is_made_by_copies_where_links_cannot_be(run: Path, tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    weights = save(run, 1)
    snapshot = take_snapshot(run, tmp_path / "by", 1, with_picture=False)
    save(run, 2)
    assert (snapshot.folder / WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize(
    "text",
    [
        "Bearer abcDEF123.-x",
        "token hf_abcdefghijklmnop was",
        "https://me:secret@hub.example/api",
        f"<{TOKEN}>",
        "my own kind of token",
    ],
)
def test_no_message_shows_a_token(text: str, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my own kind of token")
    shown = without_secrets(text)
    assert "***" in shown
    for secret in ("abcDEF", "hf_", "secret", "my own"):
        assert secret not in shown


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, bytes]:
    """A folder of shards, and the weights of a run on them without a hub."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_shards(folder)
    config = replace(tiny_config(folder), output_dir=str(folder / "alone"))
    assert main(["train", *flags(config)]) == 0
    return folder, (folder / "alone" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("token", [TOKEN, "hf_WrongWrongWrongWrong"], ids=["well", "wrong-token"])
def test_a_run_with_a_hub_is_the_run_without(hub: HubStub, trained, tmp_path: Path, monkeypatch, capfd, token: str):
    folder, weights = trained
    monkeypatch.setattr("mdsc.training.command.Uploads", partial(Uploads, end_pauses=(0.1,)))
    monkeypatch.setenv("HF_TOKEN", token)
    config = replace(tiny_config(folder), output_dir=str(tmp_path / "run"))
    options = ["--train.save-every", "2", "--hub.repo", "user/tiny", "--hub.license", "mit"]
    assert main(["train", *flags(config), *options]) == 0
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == weights
    said = "".join(capfd.readouterr())
    assert token not in said
    assert not files_with(token, tmp_path)
    if token != TOKEN:
        assert said.count("warning: hub: ") == 2, said
        assert not hub.repos
        return
    repo = hub.repos["user/tiny"]
    assert repo.messages[-1] == "Step 6"
    assert repo.files[WEIGHTS] == weights
    assert repo.files.keys() >= {"README.md", "training.yaml", "loss.png", "genes.parquet", "tokenizer.json"}
    assert not [name for name in repo.files if name.endswith((".bin", ".pt", ".pkl"))]
    assert "license: mit" in repo.files["README.md"].decode()
    assert all(TOKEN.encode() not in data for data in repo.files.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hub.repo", "nobody"], "--hub.repo: 'nobody' is no name of a repository"),
        (["--hub.repo", "user/tiny", "--hub.every", "0"], "--hub.every is 0; give 1 or more"),
        (["--hub.license", "All Mine"], "--hub.license: 'All Mine' is no licence"),
    ],
)
def test_options_that_cannot_be_are_told_before_a_run_begins(trained, tmp_path: Path, capsys, options, words: str):
    config = replace(tiny_config(trained[0]), output_dir=str(tmp_path / "run"))
    assert main(["train", *flags(config), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_upload_ends_with_the_run_that_began_it(hub: HubStub, run: Path):
    save(run, 1)
    job = {"parent": -1, "repo": "user/tiny", "private": True, "folder": str(run), "message": "Step 1"}
    command = [sys.executable, "-m", "mdsc.hub.upload_process", json.dumps(job)]
    done = subprocess.run(command, cwd=Path(mdsc.__file__).parent.parent, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert not hub.repos or not hub.repos["user/tiny"].messages
