"""Training of the Gaussian head: the trainer, checkpoints, resume and tracking are those of the masked model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_perturbed import HELD_OUT, NUM_GENES, PERTURBED, VALIDATION, gaussian_config, gaussian_flags, perturbed_shards

from mdsc.checkpoint import load_checkpoint, load_masked
from mdsc.cli import main
from mdsc.data.level_features import read_features
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.perturbation import generation
from mdsc.perturbation.building import build_head, training_units
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.paired_batches import LatentCells, PairedBatches
from mdsc.perturbation.perturbed_cells import training_and_validation
from mdsc.training.gaussian_run import prepare_gaussian
from mdsc.training.tracking import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("perturbed")
    perturbed_shards(folder)
    return folder


def prepared(folder: Path, *flags: str):
    config = gaussian_config(folder, *flags)
    return config, prepare_gaussian(config, Accelerator(cpu=True), ShardFolder.open(config.data.dir), None, print)


def test_a_run_leaves_a_checkpoint_that_loads_and_numbers_that_tell(folder: Path, tmp_path: Path, capsys):
    assert main(["train", *gaussian_flags(folder, "--output-dir", str(tmp_path / "run"))]) == 0
    assert "fp32" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "run")
    assert isinstance(checkpoint.model, GaussianHead)
    assert checkpoint.tokenizer is None
    assert checkpoint.model.config.levels == PERTURBED[:-2], "neither validation nor test perturbations are learnt"
    lines = read_metrics(tmp_path / "run")
    assert {"loss", "pointwise", "set", "decoder", "grad_norm"} <= lines[1].keys()
    scores = [line for line in lines if "validation_energy" in line]
    assert [line["step"] for line in scores] == [0, 3, 6]
    assert all(np.isfinite(value) for line in scores for value in line.values())
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    with pytest.raises(UserError, match="Gaussian head, which predicts perturbed cells"):
        load_masked(tmp_path / "run")


def test_a_run_that_goes_on_ends_at_the_same_bits(folder: Path, tmp_path: Path):
    decoder = ["--gaussian.decoder-width", "8", "--gaussian.dropout", "0.2", "--gaussian.denoiser", "set"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(["train", *gaussian_flags(folder, "--output-dir", str(whole), *decoder)]) == 0
    half = ["--output-dir", str(halves), *decoder, "--resume", "auto"]
    # The learning rate follows max_steps: the first half stops by its states, not by its end.
    assert main(["train", *gaussian_flags(folder, *half)]) == 0
    (halves / "state" / "step-00000006").rename(tmp_path / "later")
    assert main(["train", *gaussian_flags(folder, *half)]) == 0
    one, other = (load_file(run / "model.safetensors") for run in (whole, halves))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    strip = {"cells_per_second"}
    lines = [
        [{k: v for k, v in line.items() if k not in strip} for line in read_metrics(run)] for run in (whole, halves)
    ]
    assert json.dumps(lines[0]) == json.dumps(lines[1])


def test_processes_share_a_batch_and_micro_batches_do_not_change_a_loss(folder: Path):
    config, parts = prepared(folder, "--gaussian.set-loss", "energy", "--gaussian.dropout", "0.3")
    cells, _ = training_and_validation(ShardFolder.open(config.data.dir), config.gaussian, 0.1)
    head = parts.model.train()
    made = {"matching": "batch", "seed": 0, "global_batch_size": 32}
    units = training_units(cells, head)
    whole = PairedBatches(LatentCells(cells, head), units, **made).batch(5)
    shares = [
        PairedBatches(LatentCells(cells, head), units, **made, rank=rank, world_size=2).batch(5) for rank in (0, 1)
    ]
    joined = torch.cat([share.cell_index for share in shares])
    assert sorted(joined.tolist()) == whole.cell_index.tolist() == list(range(32))
    for name in ("latents", "cells", "pooled", "level", "unit"):
        together = torch.cat([getattr(share, name) for share in shares])[joined.argsort()]
        assert torch.equal(together, getattr(whole, name)), name
    losses = parts.task.losses(head, 5, whole)["loss"]
    assert losses.std() > 0
    for share in (*shares, *whole.split(8)):
        alone = parts.task.losses(head, 5, share)["loss"]
        torch.testing.assert_close(alone, losses[share.cell_index], rtol=1e-5, atol=1e-6)


def test_sets_are_of_one_unit_with_unperturbed_cells_of_its_batch(folder: Path):
    config, parts = prepared(folder)
    cells, _ = training_and_validation(ShardFolder.open(config.data.dir), config.gaussian, 0.1)
    latent_cells = LatentCells(cells, parts.model)
    units = training_units(cells, parts.model)
    batches = PairedBatches(latent_cells, units, matching="batch", seed=0, global_batch_size=32)
    row_of = {tuple(latent.tolist()): row for row, latent in enumerate(latent_cells.latents(np.arange(len(cells))))}
    seen = []
    for step in range(len(batches.drawn) // 4 + 1):
        batch = batches.batch(step)
        for part in batch.split(8):
            rows = [row_of[tuple(latent.tolist())] for latent in part.latents]
            told = [row_of[tuple(latent.tolist())] for latent in part.cells]
            names = set(cells.perturbation[rows])
            assert len(names) == 1
            seen.append(names.pop())
            assert (part.level == (0 if seen[-1] == "ctrl" else 1 + PERTURBED.index(seen[-1]))).all()
            assert set(cells.perturbation[told]) == {"ctrl"}
            assert not set(rows) & set(told), "no control cell is told of itself"
            assert (cells.batch[rows] == cells.batch[told]).all()
            own = [latent_cells.pooled["", batch] for batch in cells.batch[rows]]
            assert torch.equal(part.pooled, torch.stack(own))
    # Each unit once in an epoch, controls too.
    assert sorted(seen[: len(batches.drawn)]) == sorted(["ctrl", *PERTURBED[:-2]])


def test_nothing_of_held_out_cells_reaches_the_head(folder: Path, tmp_path: Path):
    """Test and validation cells are changed beyond recognition: the head starts as it did."""
    config = gaussian_config(folder)
    options, features = config.gaussian, read_features(folder / "features.parquet")

    def head(folder: Path) -> GaussianHead:
        cells, _ = training_and_validation(ShardFolder.open(folder / "shards"), options, 0.1)
        torch.manual_seed(0)
        return build_head(options, cells, features, seed=0, say=print)

    one = head(folder)
    import tiny_perturbed

    counts, labels = tiny_perturbed.perturbed_counts()
    changed = counts.tolil()
    for row, split in enumerate(labels["split"]):
        if split != "train":
            changed[row] = np.arange(NUM_GENES)[::-1]
    original = tiny_perturbed.perturbed_counts
    tiny_perturbed.perturbed_counts = lambda: (changed.tocsr(), labels)
    try:
        perturbed_shards(tmp_path)
    finally:
        tiny_perturbed.perturbed_counts = original
    other = head(tmp_path)
    assert {VALIDATION, HELD_OUT}.isdisjoint(one.config.levels)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("target", "set_loss"),
    [
        ("flow", "none"),
        ("v", "mmd"),
        ("edm", "energy"),
        ("epsilon", "noise_mmd"),
        ("epsilon", "mmd"),
        ("v", "noise_mmd"),
    ],
)
def test_every_objective_gives_finite_losses_and_gradients(folder: Path, target: str, set_loss: str):
    flags = ["--gaussian.target", target, "--gaussian.set-loss", set_loss, "--gaussian.decoder-width", "8"]
    config, parts = prepared(folder, *flags, "--gaussian.generated-from", "0")
    batch = next(parts.batches(5, torch.device("cpu")))
    values = parts.task.losses(parts.model.train(), 5, batch)
    assert values.keys() == set(parts.task.terms)
    assert all(value.shape == (32,) and value.isfinite().all() for value in values.values())
    assert (values["set"] != 0).any() == (set_loss != "none")
    expected = values["pointwise"] + config.gaussian.set_weight * values["set"] + values["decoder"]
    torch.testing.assert_close(values["loss"], expected)
    values["loss"].mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in parts.model.parameters())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gaussian.control", "control"], "has no control cells: --gaussian.control is 'control'.*ctrl"),
        (["--gaussian.perturbation-column", "gene"], "no condition column 'gene'"),
        (["--gaussian.pca-size", "40"], "--gaussian.pca-size 40.*give 39 at most"),
        (["--gaussian.set-size", "5"], "--gaussian.set-size 5 does not divide the 32 cells"),
        (["--model.hidden-size", "64"], "--model.hidden-size 64 is for the masked model"),
        (["--train.compile"], "--train.compile True is for the masked model"),
        (["--head", "masked"], "--gaussian.batch-column batch is for --head gaussian"),
        (["--train.batch-size", "auto"], "--train.batch-size auto is for the masked model"),
        (["--data.condition-features", "drug=x.parquet"], "reads embeddings of perturbation"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(folder: Path, tmp_path: Path, capsys, flags: list[str], message: str):
    assert main(["train", *gaussian_flags(folder, "--output-dir", str(tmp_path / "run"), *flags)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said.replace("\n", " ")), said
    assert "Traceback" not in said


def test_perturbations_without_an_embedding_and_with_few_cells_are_left_out_and_told(folder: Path):
    config = gaussian_config(folder)
    cells, _ = training_and_validation(ShardFolder.open(config.data.dir), config.gaussian, 0.1)
    few = np.flatnonzero(cells.perturbation == "G1")[4:]
    cells = cells.select(np.setdiff1d(np.arange(len(cells)), few))
    features = read_features(folder / "features.parquet")
    kept = [name != "G2" for name in features.names]
    features = replace(features, names=tuple(np.array(features.names)[kept].tolist()), values=features.values[kept])
    said = []
    head = build_head(config.gaussian, cells, features, seed=0, say=said.append)
    assert head.config.levels == ["G0", "G3", "G4", "G5"]
    assert [unit.perturbation for unit in training_units(cells, head)] == ["G0", "G3", "G4", "G5"]
    assert any("too small" in line and "G1" in line for line in said)
    assert any("no embedding" in line and "G2" in line for line in said)


def test_ddpm_draws_independent_cells_however_many_are_drawn_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    _, parts = prepared(folder)
    monkeypatch.setattr(generation, "CELLS_AT_ONCE", 16)
    number, size = 32, parts.model.config.latent_size
    nothing = torch.zeros(number, size)
    drawn = generation.draw_latents(
        parts.model,
        torch.zeros(number, parts.model.config.vector_size),
        torch.zeros(number, dtype=torch.bool),
        nothing,
        nothing,
        nothing,
        options=generation.DrawOptions(sampler="ddpm", num_steps=50),
        seed=0,
        keys=torch.arange(number),
    )
    first, second = drawn.split(16)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()) < 0.35
