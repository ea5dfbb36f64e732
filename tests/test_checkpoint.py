"""Checkpoints: bit-equal back, whole or not at all, and never with a random weight."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_run import tiny_config, tiny_shards, tiny_trainer

from mdsc.checkpoint import Checkpoint, load_checkpoint, newest_run, save_checkpoint
from mdsc.data.genes import GeneStatistics, GeneVocabulary
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.training.trainer_state import HostCopy


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Checkpoint]:
    folder = tmp_path_factory.mktemp("saved")
    tiny_shards(folder)
    config = tiny_config(folder)
    trainer, loader = tiny_trainer(config)
    trainer.step(0, next(loader.iterate()))
    shards = ShardFolder.open(config.data.dir)
    copy = HostCopy()
    copy.take(trainer)
    checkpoint = Checkpoint(copy.model, trainer.task.tokenizer, shards.vocabulary, shards.statistics, config)
    save_checkpoint(config.output_dir, checkpoint)
    return Path(config.output_dir), checkpoint


@pytest.fixture
def copy(saved, tmp_path: Path) -> Path:
    """A checkpoint folder to spoil."""
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def test_a_checkpoint_comes_back_bit_for_bit(saved):
    folder, checkpoint = saved
    loaded = load_checkpoint(folder)
    assert loaded.config == checkpoint.config
    assert loaded.tokenizer == checkpoint.tokenizer
    assert loaded.vocabulary.digest == checkpoint.vocabulary.digest
    assert (loaded.statistics.detection_rate == checkpoint.statistics.detection_rate).all()
    assert not loaded.model.training
    mine, theirs = loaded.model.state_dict(), checkpoint.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_all_files_are_as_readable_as_the_others(saved):
    assert len({path.stat().st_mode for path in saved[0].iterdir()}) == 1


def test_the_options_of_the_run_may_be_missing(copy: Path):
    (copy / "training.yaml").unlink()
    assert load_checkpoint(copy).config is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "genes.parquet", "tokenizer.json"])
def test_a_missing_file_is_named(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(UserError, match=name):
        load_checkpoint(copy)


def test_pickled_weights_are_not_read(copy: Path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pickled'\ntR.")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_checkpoint(copy)


def change_weights(folder: Path, change) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda weights: weights.pop("blocks.0.mlp.0.weight", weights.popitem()), "missing", id="missing"),
        pytest.param(lambda weights: weights.update(extra=torch.ones(2)), "unexpected keys extra", id="unexpected"),
        pytest.param(
            lambda weights: weights.update({"output_bias.weight": torch.ones(2, 2)}), "output_bias", id="other-shape"
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error_and_never_random(copy: Path, change, words: str):
    change_weights(copy, change)
    with pytest.raises(UserError, match=words):
        load_checkpoint(copy)


def test_a_truncated_weights_file_is_an_error(copy: Path):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(copy)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_an_error(copy: Path, value: float):
    change_weights(copy, lambda weights: weights["gene_evidence.loadings"][3].fill_(value))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: gene_evidence\.loadings"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"num_heads": 0}, id="no-heads"),
        pytest.param({"dropout": 2}, id="dropout"),
        pytest.param({"state_dropout": None}, id="no-dropout"),
        pytest.param({"state_pooling": "posteriop"}, id="pooling"),
    ],
)
def test_values_of_the_config_that_no_model_takes_are_an_error(copy: Path, change: dict):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=r"config\.json"):
        load_checkpoint(copy)


def test_an_unknown_key_of_the_config_is_an_error(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hiden_size": 3}))
    with pytest.raises(UserError, match="hiden_size"):
        load_checkpoint(copy)


def test_files_of_different_checkpoints_are_told_apart(copy: Path, saved):
    GeneVocabulary.of(["A", "B"]).save(copy, GeneStatistics(*[np.ones(2)] * 3))
    with pytest.raises(UserError, match=r"48 genes.* has 2"):
        load_checkpoint(copy)


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_failure_while_saving_leaves_the_last_checkpoint(copy: Path, saved, monkeypatch):
    monkeypatch.setattr("mdsc.checkpoint.save_tokenizer", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(copy, saved[1])
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_another_runs_folder_never_holds_a_mixture(copy: Path, saved, monkeypatch):
    """A kill between the files of a new run leaves no weights of the old one beside them."""
    (copy / "tokenizer.json").write_text("of an earlier run")
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "tokenizer.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(copy, saved[1])
    assert not (copy / "model.safetensors").exists()
    monkeypatch.undo()
    save_checkpoint(copy, saved[1])
    assert load_checkpoint(copy).config == saved[1].config


def test_what_a_killed_save_has_left_is_in_nobodys_way(copy: Path, saved):
    (copy / ".saving").mkdir()
    (copy / ".saving" / "model.safetensors").write_text("half")
    save_checkpoint(copy, saved[1])
    assert not (copy / ".saving").exists()
    load_checkpoint(copy)


def test_the_newest_run_is_the_one_saved_last(tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint"):
        newest_run(tmp_path)
    for name, saved_at in (("a", 20), ("b", 30), ("c", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        os.utime(tmp_path / name / "model.safetensors", (saved_at, saved_at))
    (tmp_path / "d").mkdir()  # a run that has saved nothing yet
    assert newest_run(tmp_path) == tmp_path / "b"
