"""A checkpoint from the hub: the same bits in a clean process, only what is needed, and clear words where it fails."""

import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from hub_repo_stub import TOKEN, HubStub, Repo, files_with
from huggingface_hub import constants
from tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint

import mdsc
from mdsc.checkpoint import load_checkpoint
from mdsc.cli import main
from mdsc.errors import UserError

SYMBOLS = [f"G{number}" for number in range(30)]
ROOT = Path(mdsc.__file__).parent.parent
BEFORE = """
import sys, mdsc
assert "torch" not in sys.modules
from transformers import AutoConfig
print(AutoConfig.from_pretrained("user/tiny").num_genes)
from transformers import AutoModel
import torch
def explode(*_, **__):
    raise AssertionError("something was unpickled")
torch.load = explode
loaded = AutoModel.from_pretrained("user/tiny")
assert type(loaded) is mdsc.MdscModel
"""
AFTER = """
from hashlib import sha256
torch.manual_seed(1)
tokens = torch.randint(12, (1, 30))
for one in (loaded, model):
    print(sha256(one(torch.arange(30)[None], tokens, tokens, None).logits.detach().numpy().tobytes()).hexdigest())
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "runs" / "a", SYMBOLS)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    counts = np.random.default_rng(0).poisson(1.0, (5, len(SYMBOLS))).astype(np.float32)
    adata = anndata.AnnData(counts)
    adata.var_names = SYMBOLS
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def pushed(hub: HubStub, run: Path) -> Repo:
    assert main(["push", "--checkpoint", str(run), "--repo", "user/tiny"]) == 0
    hub.requests.clear()
    return hub.repos["user/tiny"]


def test_the_cards_code_gives_the_same_logits_in_a_clean_process(hub: HubStub, pushed: Repo, run: Path, cells: Path):
    pushed.files["pytorch_model.bin"] = b"a pickle, which nobody may fetch"
    code = re.search(r"```python\n(.*?)```", pushed.files["README.md"].decode(), re.S)[1]
    assert len([line for line in code.splitlines() if line]) == 5
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + code + AFTER],
        cwd=cells.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    torch.manual_seed(1)
    tokens = torch.randint(12, (1, 30))
    logits = tiny_checkpoint(SYMBOLS).model(torch.arange(30)[None], tokens, tokens, None).logits
    said = done.stdout.splitlines()
    assert said[0] == "30"
    assert said[-2:] == 2 * [sha256(logits.detach().numpy().tobytes()).hexdigest()]
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {"config.json", "model.safetensors", "genes.parquet", "tokenizer.json"}
    assert TOKEN not in done.stdout + done.stderr
    assert not files_with(TOKEN, cells.parent)
    assert not files_with("a pickle", cells.parent)


def test_commands_take_a_name_where_they_take_a_folder(hub: HubStub, pushed: Repo, cells: Path, monkeypatch, capsys):
    monkeypatch.chdir(cells.parent)
    options = ["--input", "cells.h5ad", "--mask-ratio", "0.5", "--num-steps", "2"]
    assert main(["sample", "--checkpoint", "user/tiny", *options]) == 0
    assert "writing filled.h5ad" in capsys.readouterr().out
    filled = anndata.read_h5ad("filled.h5ad")
    assert filled.uns["mdsc"]["checkpoint"] == f"user/tiny@{pushed.sha()}"
    options = ["--input", "cells.h5ad", "--mask-ratios", "0.5", "--json", "scores.json"]
    assert main(["evaluate", "inpaint", "--checkpoint", f"user/tiny@{pushed.sha()}", *options]) == 0
    assert f'"user/tiny@{pushed.sha()}"' in Path("scores.json").read_text()
    fetched = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert len(fetched) == 4, "each file is fetched once"


def test_a_folder_of_that_name_goes_first(hub: HubStub, pushed: Repo, tmp_path: Path, monkeypatch):
    (tmp_path / "user").mkdir()
    (tmp_path / "runs" / "a").rename(tmp_path / "user" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("user/tiny").model.name_or_path == "user/tiny"
    assert mdsc.MdscModel.from_pretrained("user/tiny").config.num_genes == len(SYMBOLS)
    assert not hub.requests


def without_token(hub: HubStub, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def gated(hub: HubStub, monkeypatch) -> None:
    hub.repos["user/tiny"].gated = True


def wrong_token(hub: HubStub, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_WrongWrongWrongWrong")


def dead(hub: HubStub, monkeypatch) -> None:
    hub.die()


def offline(hub: HubStub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def pickle_alone(hub: HubStub, monkeypatch) -> None:
    files = hub.repos["user/tiny"].files
    files["pytorch_model.bin"] = files.pop("model.safetensors")


def no_checkpoint(hub: HubStub, monkeypatch) -> None:
    hub.repos["user/tiny"].files.clear()
    hub.repos["user/tiny"].files["a.txt"] = b"a"


@pytest.mark.parametrize("load", [load_checkpoint, mdsc.MdscModel.from_pretrained])
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        pytest.param("user/other", None, "the hub shows no model user/other to that token's account", id="none"),
        pytest.param("user/tiny@v9", None, "user/tiny has no revision v9", id="revision"),
        pytest.param("user/tiny", without_token, "not logged in: .* if it is private, log in", id="401"),
        pytest.param("user/tiny", wrong_token, "to that token's account", id="wrong-token"),
        pytest.param("user/tiny", gated, "is gated: ask for access on its page", id="gated"),
        pytest.param("user/tiny", dead, "does not answer, and user/tiny is not in the cache", id="dead"),
        pytest.param("user/tiny", offline, "HF_HUB_OFFLINE is set, and user/tiny is not in the cache", id="offline"),
        pytest.param("user/tiny", pickle_alone, "as a pickle alone .pytorch_model.bin.", id="pickle"),
        pytest.param("user/tiny", no_checkpoint, "has no config.json and no model.safetensors", id="no-checkpoint"),
    ],
)
def test_what_cannot_be_had_is_told(hub: HubStub, pushed: Repo, tmp_path, monkeypatch, load, name, change, words):
    if change is not None:
        change(hub, monkeypatch)
    with pytest.raises(UserError, match=words) as error:
        load(name)
    message = str(error.value)
    assert message.count("\n") <= 2
    assert "hf_" not in message
    assert not [request for request in hub.requests if ".bin" in request]
    assert not list((tmp_path / "hf").rglob("*.bin"))


@pytest.mark.parametrize("change", [dead, offline, wrong_token])
def test_what_was_had_before_is_there_without_a_hub(hub: HubStub, pushed: Repo, monkeypatch, change):
    load_checkpoint("user/tiny")
    change(hub, monkeypatch)
    again = load_checkpoint("user/tiny")
    assert again.model.name_or_path == f"user/tiny@{pushed.sha()}"
    assert torch.equal(again.model.output_bias.weight, tiny_checkpoint(SYMBOLS).model.output_bias.weight)
