"""Saved models: bit-equal back, by transformers' own functions too, and no file that could run code is ever read."""

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_model import CONDITIONS, tiny_cells, tiny_config, tiny_model
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

import mdsc
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel


@pytest.fixture(autouse=True)
def _no_progress_bars():
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.mark.parametrize("num_layers", [pytest.param(0, id="pooled"), pytest.param(2, id="dit")])
@pytest.mark.parametrize("load", [MdscModel.from_pretrained, AutoModel.from_pretrained])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, num_layers: int, load):
    model = tiny_model(num_layers=num_layers, dropout=0.1, **CONDITIONS)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is MdscModel
    assert not loaded.training
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name]), name
    cells = tiny_cells() | {"categories": {"drug": torch.tensor([0, 1, 2])}, "vectors": {"text": torch.ones(3, 5)}}
    assert torch.equal(loaded(**cells).logits, model(**cells).logits)
    for name in ("num_genes", "num_tokens", "dropout", "condition_levels", "vector_sizes"):
        assert getattr(loaded.config, name) == getattr(model.config, name)


def test_a_saved_folder_holds_a_config_and_safetensors_alone(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_transformers_knows_the_model():
    config = AutoConfig.for_model("mdsc", num_genes=3, num_tokens=4, hidden_size=8, num_layers=1)
    assert type(config) is MdscConfig
    assert type(AutoModel.from_config(config)) is MdscModel


def test_the_package_names_its_model():
    assert mdsc.MdscModel is MdscModel
    assert all(getattr(mdsc, name) for name in mdsc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'MdscModle'"):
        _ = mdsc.MdscModle


def test_a_misspelt_option_is_an_error():
    with pytest.raises(ValueError, match="hiden_size"):
        tiny_config(hiden_size=8)
    with pytest.raises(ValueError, match="hidden_size 15 is not a multiple of num_heads 2"):
        tiny_config(hidden_size=15)


def test_a_misspelt_key_of_the_file_is_an_error(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_leyers": 1}))
    with pytest.raises(ValueError, match="num_leyers"):
        MdscModel.from_pretrained(tmp_path)


def test_a_lacking_weight_is_an_error_and_not_drawn_at_random(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["blocks.1.attention.qkv.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks blocks\.1\.attention\.qkv\.weight"):
        MdscModel.from_pretrained(tmp_path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, fuse: Path):
        self.fuse = fuse

    def __reduce__(self):
        return os.mkdir, (str(self.fuse),)


@pytest.mark.parametrize("load", [MdscModel.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in-place-of-safetensors"])
@pytest.mark.parametrize("poisoned", [False, True], ids=["innocent", "poisoned"])
def test_loading_unpickles_nothing(tmp_path: Path, monkeypatch, load, in_place: bool, poisoned: bool):
    folder, fuse = tmp_path / "model", tmp_path / "exploded"
    model = tiny_model()
    model.save_pretrained(folder)
    if poisoned:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(fuse)))
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
        fuse.rmdir()  # it was there: the bomb works
    else:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if in_place:
        (folder / "model.safetensors").unlink()

    def explode(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, explode)
    monkeypatch.setattr(torch, "load", explode)
    if in_place:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            load(folder)
    else:
        assert torch.equal(load(folder).output_bias.weight, model.output_bias.weight)
    assert not fuse.exists()


def test_pickled_weights_cannot_be_asked_for(tmp_path: Path):
    with pytest.raises(ValueError, match="safetensors alone"):
        MdscModel.from_pretrained(tmp_path, use_safetensors=False)
