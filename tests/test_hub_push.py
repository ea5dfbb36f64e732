"""`mdsc push`: what arrives, what is refused in one line, and what the model card says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_repo_stub import TOKEN, HubStub, files_with
from tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint
from tiny_run import flags, tiny_config, tiny_shards

import mdsc
from mdsc.checkpoint import save_checkpoint, weights_digest
from mdsc.cli import main
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.data.quarantine import Quarantined

SYMBOLS = [f"G{number}" for number in range(30)]
FILES = {"model.safetensors", "config.json", "genes.parquet", "tokenizer.json"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "runs" / "a", SYMBOLS)


def push(run: Path, *options: str, repo: str = "user/tiny") -> int:
    return main(["push", "--checkpoint", str(run), "--repo", repo, *options])


def test_a_push_is_one_commit_to_a_private_repository(hub: HubStub, run: Path, capsys):
    (run / "metrics.jsonl").write_text("")
    assert push(run) == 0
    repo = hub.repos["user/tiny"]
    assert repo.private
    assert len(repo.commits) == 2
    assert repo.files.keys() == FILES | {"README.md", ".gitattributes"}
    for name in FILES:
        assert repo.files[name] == (run / name).read_bytes()
    assert {path.name for path in run.iterdir()} == FILES | {"metrics.jsonl"}
    assert capsys.readouterr().out.splitlines()[-1].endswith("/user/tiny (private)")


def test_a_later_push_leaves_nothing_of_the_earlier_one_but_what_others_put_there(hub: HubStub, run: Path):
    record = Quarantined("a.parquet", 0, "its hash differs", "a.parquet", 1)
    (run / "loss.png").write_bytes(b"picture")
    save_checkpoint(run, replace(tiny_checkpoint(SYMBOLS), quarantined=(record,)))
    assert push(run, "--no-private") == 0
    repo = hub.repos["user/tiny"]
    assert not repo.private
    assert "1 corrupt row groups" in repo.files["README.md"].decode()
    repo.files["notes.txt"] = b"the owner's"
    other = tiny_checkpoint(SYMBOLS)
    torch.nn.init.ones_(other.model.output_bias.weight)
    save_checkpoint(run, other)
    (run / "loss.png").unlink()
    assert push(run) == 0
    assert repo.files.keys() == FILES | {"README.md", ".gitattributes", "notes.txt"}
    assert repo.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert push(run) == 0  # the same again


@pytest.mark.parametrize(
    ("options", "token", "words"),
    [
        pytest.param({"repo": "tiny"}, TOKEN, "--repo: 'tiny' is no name", id="no-owner"),
        pytest.param({"repo": "user/ti ny"}, TOKEN, "--repo: 'user/ti ny' is no name", id="space"),
        pytest.param({"repo": "user/tiny@v1"}, TOKEN, "is no name of a repository", id="revision"),
        pytest.param({"repo": "stranger/tiny"}, TOKEN, "may not write to stranger/tiny (403)", id="not-mine"),
        pytest.param({}, "hf_WrongWrongWrongWrong", "does not accept the token (401): log in", id="wrong-token"),
        pytest.param({}, "", "there is no token of the hub on this machine: log in", id="no-token"),
    ],
)
def test_what_cannot_be_pushed_is_told_in_a_line(hub: HubStub, run: Path, capsys, monkeypatch, options, token, words):
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(run, **options) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not token or token not in said.out + said.err
    assert not hub.repos
    assert {path.name for path in run.iterdir()} == FILES


def test_a_run_that_is_not_there_or_not_whole_is_not_pushed(hub: HubStub, run: Path, capsys):
    assert push(run / "nowhere") == 2
    assert "there is no folder" in capsys.readouterr().err
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert push(run) == 2
    assert f"error: {run}: config.json or model.safetensors cannot be read" in capsys.readouterr().err
    weights.unlink()
    assert push(run) == 2
    assert "has no model.safetensors" in capsys.readouterr().err
    assert push(run, "--license", "My own!") == 2
    assert "--license: 'My own!' is no licence" in capsys.readouterr().err
    assert not hub.repos


def test_a_dead_hub_is_told_in_a_line(hub: HubStub, run: Path, capsys):
    hub.die()
    assert push(run) == 2
    said = capsys.readouterr().err
    assert f"the hub at {hub.endpoint} does not answer" in said
    assert said.count("\n") == 1


def test_a_card_that_is_there_goes_first(hub: HubStub, run: Path, capsys):
    (run / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert push(run) == 0
    assert hub.repos["user/tiny"].files["README.md"].endswith(b"mine\n")
    assert "README.md, as it stands there" in capsys.readouterr().out


def test_the_card_tells_of_the_run(hub: HubStub, tmp_path: Path):
    shards = tiny_shards(tmp_path)
    config = tiny_config(tmp_path, max_steps=4)
    done = Path(config.output_dir)
    features = LevelFeatures(("drug 0", "drug 1", "drug 9"), np.eye(3), "here")
    write_features(features, tmp_path / "drugs.parquet")
    told = ["--data.condition-columns", "drug", "--data.condition-features", f"drug={tmp_path / 'drugs.parquet'}"]
    assert main(["train", *flags(config), *told]) == 0
    assert push(done, "--license", "cc-by-4.0") == 0
    files = hub.repos["user/tiny"].files
    assert files.keys() >= FILES | {"training.yaml", "loss.png"}
    card = files["README.md"].decode()
    meta = yaml.safe_load(card.split("---")[1])
    assert (meta["license"], meta["library_name"]) == ("cc-by-4.0", "mdsc")
    for fact in (
        f"Shards `shards`: {shards.num_cells('train')} training cells",
        f"`{shards.digest}`",
        "48 genes",
        "Condition `drug`, 3 levels",
        "Features of 3 names of `drug`, 1 of them without training cells",
        "Optimiser steps: 4\n",
        "max_steps 4, global_batch_size 16",
        "after 4 steps",
        f"Trained on 1 x cpu with mdsc {mdsc.__version__}, torch {torch.__version__}",
        "| 50% | ",
        "**No baselines were computed for these weights** (there is no scores.json)",
    ):
        assert fact in card, fact
    assert str(tmp_path) not in card
    (shards.path / "manifest.json").unlink()
    assert push(done) == 0
    assert "they were not at hand" in hub.repos["user/tiny"].files["README.md"].decode()
    assert not files_with(TOKEN, tmp_path)


def scores(digest: str) -> dict:
    row = {"nll": 0.5, "accuracy": 0.9, "standard_error": {"nll": 0.01}}
    return {
        "model": {"0.8": row},
        "baselines": {"gene_marginal": {"0.8": row | {"nll": 0.6}}, "svd": {"0.8": row | {"nll": 0.4}}},
        "comparison": {
            "0.8": {"best_baseline": "svd", "nll_difference": 0.1, "standard_error": 0.02, "model_wins": False}
        },
        "settings": {"cells": 120, "genes": 30, "input": "/home/somebody/test.h5ad", "weights_sha256": digest},
    }


def test_scores_stand_beside_baselines_if_they_are_of_these_weights(hub: HubStub, run: Path):
    (run / "scores.json").write_text(json.dumps(scores(weights_digest(run))))
    assert push(run) == 0
    card = hub.repos["user/tiny"].files["README.md"].decode()
    rows = [line for line in card.splitlines() if line.startswith("| 80%")]
    assert [row.split(" | ")[1] for row in rows] == ["svd", "**this model**", "gene_marginal"]
    assert "0.5000 ± 0.0100" in rows[1]
    assert "the model is NOT below the best baseline, svd, by 0.1000 ± 0.0200" in card
    assert "No baselines" not in card
    assert "/home/somebody" not in card

    (run / "scores.json").write_text(json.dumps(scores("of other weights")))
    assert push(run) == 0
    card = hub.repos["user/tiny"].files["README.md"].decode()
    assert "(scores.json is of other weights)" in card
    assert "| 80%" not in card
