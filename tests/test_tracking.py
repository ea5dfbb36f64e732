"""What a run leaves beside its numbers: how it was started, and the same values for TensorBoard."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from tiny_run import flags, tiny_config, tiny_shards

import mdsc
from mdsc.cli import main
from mdsc.config.schema import DataConfig, TrackingConfig, TrainConfig
from mdsc.data.shards import ShardFolder
from mdsc.training import run_record, state_files
from mdsc.training.run_record import code_commit, start_of, starts_of, without_tokens
from mdsc.training.state_files import saved_steps, state_folder
from mdsc.training.tracking import BOARD, Tracker, read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    tiny_shards(folder)
    return folder


def train(folder: Path, run: Path, *options: str) -> int:
    config = replace(tiny_config(folder, max_steps=4), output_dir=str(run))
    return main(["train", *flags(config), "--train.save-every", "2", *options])


def without_state(run: Path, step: int) -> None:
    for later in saved_steps(run):
        if later > step:
            shutil.rmtree(state_folder(run, later))


def test_each_start_of_a_run_is_recorded(folder: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub.token", "hf_abcdef", "--seed", "0"])
    assert train(folder, run) == 0
    (start,) = starts_of(run)
    assert start["command"][1:] == ["--hub.token", "***", "--seed", "0"]
    assert (start["from_step"], start["processes"]) == (0, 1)
    assert start["data"] == ShardFolder.open(folder / "shards").digest
    assert start["options"]["train"]["max_steps"] == 4
    assert start["versions"]["mdsc"] == mdsc.__version__
    assert {"python", "torch", "numpy", "accelerate", "transformers"} <= start["versions"].keys()

    without_state(run, 2)
    assert train(folder, run, "--resume", "auto") == 0
    assert [one["from_step"] for one in starts_of(run)] == [0, 2]
    assert starts_of(run)[0] == start
    fork = tmp_path / "fork"
    assert train(folder, fork, "--resume", str(state_folder(run, 2))) == 0
    assert [one["from_step"] for one in starts_of(fork)] == [0, 2, 2]
    assert train(folder, run) == 0
    assert [one["from_step"] for one in starts_of(run)] == [0]


def test_a_record_that_is_not_whole_is_no_hindrance(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert train(folder, run) == 0
    for text in ('{"starts": [', "[]", '{"starts": 3}'):
        (run / run_record.FILE_NAME).write_text(text)
        assert train(folder, run, "--resume", "auto") == 0
        assert [one["from_step"] for one in starts_of(run)] == [4]
        assert (run / "run.json.damaged").read_text() == text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_a_disk_that_takes_no_record_is_told_in_a_line(folder: Path, tmp_path: Path, capsys, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("mdsc.training.tracking.write_start", full)
    assert train(folder, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert f"--output-dir {tmp_path / 'run'} cannot be written: {error.strerror}" in told
    assert "Traceback" not in told


def test_no_secret_is_recorded(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    command = ["x.py", "--api-key=12", "--some.password", "34", "--flag", "a-token-of-another-form", "-c", "hf_56"]
    assert without_tokens(command) == ["x.py", "--api-key=***", "--some.password", "***", "--flag", "***", "-c", "***"]
    harmless = ["--tokenizer.name", "rank", "--tokenizer.num-tokens", "9"]
    assert without_tokens(harmless) == harmless
    config = TrainConfig(data=DataConfig(dir="https://me:pass@host/shards"), output_dir=str(tmp_path))
    start = start_of(config, Accelerator(cpu=True), "0", None)
    assert start["options"]["data"]["dir"] == "https://***@host/shards"


def test_the_commit_is_that_of_the_code_and_of_no_other_checkout(tmp_path: Path):
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *names, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "code"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert code_commit(package) is None
    git("init", "-q")
    assert code_commit(package) is None, "it lies in a checkout that does not know it, as a virtual environment may"
    git("add", ".")
    git("commit", "-qm", "first")
    assert code_commit(package) == {"commit": git("rev-parse", "HEAD"), "is_dirty": False}
    (tmp_path / "notes.txt").write_text("not of the package")
    assert code_commit(package)["is_dirty"] is False
    (package / "more.py").write_text("")
    assert code_commit(package)["is_dirty"] is True


def test_wandb_is_told_of_start_and_events(tmp_path: Path, monkeypatch):
    told = []

    class Run:
        def log(self, values, step):
            told.append((step, values))

        def finish(self, exit_code):
            pass

    wandb = type(sys)("wandb")
    wandb.init = lambda **options: told.append(options["config"]) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = TrainConfig(output_dir=str(tmp_path / "run"), tracking=TrackingConfig(wandb=True))
    with Tracker(config, None, start_of(config, Accelerator(cpu=True), "abc", None)) as tracker:
        tracker.event(5, "loss_spike", {"loss": 9.0})
    assert told[0]["run"]["data"] == "abc"
    assert told[0]["run"].keys() >= {"git", "versions", "devices", "command"}
    assert told[0]["train"]["max_steps"] == config.train.max_steps
    assert told[1] == (5, {"events/loss_spike": 1})


def board_values(run: Path) -> dict[str, list[tuple[int, float]]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / BOARD))
    board.Reload()
    return {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}


def written_values(run: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(run):
        for name, value in line.items():
            if name != "step":
                found.setdefault(name, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return found


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs mdsc[tensorboard]"
)


@needs_tensorboard
def test_tensorboard_shows_what_metrics_say_after_a_restart_too(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert train(folder, run, "--tracking.tensorboard") == 0
    assert board_values(run) == written_values(run)
    without_state(run, 2)
    assert train(folder, run, "--tracking.tensorboard", "--resume", "auto") == 0
    assert len(list((run / BOARD).iterdir())) == 2
    assert board_values(run) == written_values(run)
    assert train(folder, run, "--tracking.tensorboard", "--seed", "1") == 0
    assert board_values(run) == written_values(run)
    assert not (tmp_path / "none" / BOARD).exists()


@needs_tensorboard
def test_tensorboard_takes_what_is_not_finite_and_events(tmp_path: Path):
    config = TrainConfig(output_dir=str(tmp_path / "run"), tracking=TrackingConfig(tensorboard=True))
    with Tracker(config) as tracker:
        tracker.log(1, {"loss": math.nan})
        tracker.event(1, "quarantined", {"file": "x"})
        tracker.log(2, {"loss": 1.0})
    (first, second) = board_values(tmp_path / "run")["loss"]
    assert math.isnan(first[1])
    assert second == (2, 1.0)


def test_tensorboard_that_is_not_installed_is_told_before_training(folder: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(folder, tmp_path / "run", "--tracking.tensorboard") == 2
    assert "pip install 'mdsc[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_state_of_an_older_version_is_gone_on_with(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert train(folder, run) == 0
    without_state(run, 2)
    path = state_folder(run, 2) / state_files.FACTS
    facts = json.loads(path.read_text())
    del facts["hash"], facts["spikes"], facts["averages"]["flops"]
    path.write_text(json.dumps(facts | {"hash": state_files._hash_of(facts)}))
    assert train(folder, run, "--resume", "auto") == 0
    assert starts_of(run)[-1]["from_step"] == 2
