"""Predictions of the Gaussian head: what they start from, what they keep, and what cannot be asked of it."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_perturbed import HELD_OUT, NUM_GENES, gaussian_flags, perturbed_counts, perturbed_shards

import mdsc
from mdsc.checkpoint import load_checkpoint
from mdsc.cli import main
from mdsc.data.level_features import LevelFeatures, read_features
from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError
from mdsc.publish.card import model_card
from mdsc.publish.card_facts import card_facts
from mdsc.publish.snapshot import take_snapshot


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    perturbed_shards(folder)
    assert main(["train", *gaussian_flags(folder)]) == 0
    counts, labels = perturbed_counts()
    var = pd.DataFrame(index=[f"G{number}" for number in range(NUM_GENES)])
    obs = pd.DataFrame(labels, index=[f"cell {number}" for number in range(counts.shape[0])])
    cells = anndata.AnnData(counts, obs=obs, var=var)
    cells[cells.obs["perturbation"] == "ctrl"].copy().write_h5ad(folder / "controls.h5ad")
    return folder


@pytest.fixture(scope="module")
def controls(folder: Path) -> anndata.AnnData:
    return anndata.read_h5ad(folder / "controls.h5ad")


def untrained(folder: Path):
    """The head as it starts: the denoiser gives 0."""
    checkpoint = load_checkpoint(folder / "run")
    for name, parameter in checkpoint.model.denoiser.named_parameters():
        if name.startswith("head."):
            torch.nn.init.zeros_(parameter)
    return checkpoint


def mean_of(predicted: anndata.AnnData, name: str) -> np.ndarray:
    return np.asarray(predicted[predicted.obs["perturbation"] == name].X, dtype=np.float64).mean(axis=0)


def test_the_start_is_the_mean_of_the_controls_and_the_ridge_regression_over_all_genes(folder: Path, controls):
    """Also over genes and directions that the six components leave out."""
    checkpoint = untrained(folder)
    head = checkpoint.model
    predicted = mdsc.predict_perturbations(checkpoint, controls, [HELD_OUT], cells_per_perturbation=len(controls) * 2)
    vector = head.vectors_of((HELD_OUT,))
    expected = np.zeros(NUM_GENES)
    for batch in ("b0", "b1"):
        own = log_normalised(controls[controls.obs["batch"] == batch].X).toarray()
        expected += (own.mean(axis=0) + head.ridge(vector)[0].numpy()) / 2
    np.testing.assert_allclose(mean_of(predicted, HELD_OUT), expected, atol=2e-4)


def test_noise_comes_in_opposite_pairs(folder: Path, controls):
    """The mean of a linear denoiser's cells has no noise; one cell's law is as if it were alone."""
    checkpoint = untrained(folder)
    latent = []
    for seed in (0, 1):
        predicted = mdsc.predict_perturbations(checkpoint, controls, ["G0"], cells_per_perturbation=40, seed=seed)
        own = predicted[predicted.obs["perturbation"] == "G0"]
        latent.append(checkpoint.model.basis.to_latent(torch.from_numpy(np.asarray(own.X))))
    assert (latent[0] - latent[1]).abs().mean() > 0.2
    assert latent[0].std(dim=0).mean() > 0.3


def test_controls_are_copied_and_each_cell_says_what_it_was_made_from(folder: Path, controls):
    predicted = mdsc.predict_perturbations(folder / "run", controls, ["G0", HELD_OUT], cells_per_perturbation=9)
    assert predicted.obs["perturbation"].value_counts().to_dict() == {"ctrl": len(controls), "G0": 9, HELD_OUT: 9}
    real = predicted[predicted.obs["perturbation"] == "ctrl"]
    np.testing.assert_allclose(real.X, log_normalised(controls[real.obs_names].X).toarray(), atol=1e-5)
    made = predicted[predicted.obs["perturbation"] != "ctrl"]
    batch = controls.obs.loc[made.obs["control_cell"].astype(str), "batch"].astype(str).to_numpy()
    assert (made.obs["batch"].astype(str).to_numpy() == batch).all()
    assert predicted.uns["mdsc"]["task"] == "perturbation"
    assert "counts" not in predicted.layers


def test_a_perturbation_does_not_depend_on_others_asked_for_and_genes_may_come_in_any_order(folder: Path, controls):
    alone = mdsc.predict_perturbations(folder / "run", controls, ["G0"], cells_per_perturbation=8)
    both = mdsc.predict_perturbations(folder / "run", controls, ["G3", "G0"], cells_per_perturbation=8)
    np.testing.assert_array_equal(*(x[x.obs["perturbation"] == "G0"].X for x in (alone, both)))
    turned = mdsc.predict_perturbations(folder / "run", controls[:, ::-1].copy(), ["G0"], cells_per_perturbation=8)
    assert turned.var_names.tolist() == alone.var_names.tolist()
    np.testing.assert_allclose(turned.X, alone.X, atol=1e-4)


def test_genes_that_were_not_measured_count_as_the_mean_and_are_told(folder: Path, controls):
    said = []
    some = mdsc.predict_perturbations(
        folder / "run", controls[:, 5:].copy(), ["G0"], cells_per_perturbation=8, say=said.append
    )
    assert some.n_vars == NUM_GENES - 5
    assert any("lack 5 of the model's 40 genes" in line for line in said)
    assert np.isfinite(some.X).all()


def test_vectors_of_two_genes_are_those_of_the_sum_of_their_embeddings(folder: Path, controls):
    head = load_checkpoint(folder / "run").model
    features = read_features(folder / "features.parquet")
    row = dict(zip(features.names, features.values, strict=True))
    together = torch.from_numpy(row["G8"] + row["G1"]).float()
    torch.testing.assert_close(head.vectors_of(("G1+G8",))[0], head.vectors.reduced(together[None])[0])
    given = LevelFeatures(("NEW",), (row["G8"] + row["G1"])[None], "here")
    pair, new = (
        mdsc.predict_perturbations(
            folder / "run", controls, [name], cells_per_perturbation=60, condition_features=extra
        )
        for name, extra in (
            ("G1+G8", {}),
            ("NEW", {"perturbation": given}),
        )
    )
    np.testing.assert_allclose(mean_of(pair, "G1+G8"), mean_of(new, "NEW"), atol=0.15)


def test_guidance_moves_cells_away_from_those_of_whom_nothing_is_told(folder: Path, controls):
    head = load_checkpoint(folder / "run")
    one, two, none = (
        mdsc.predict_perturbations(head, controls, ["G0"], cells_per_perturbation=12, guidance=guidance)
        for guidance in (1.0, 2.0, 0.0)
    )
    assert not np.allclose(one.X, two.X)
    assert not np.allclose(one.X, none.X)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["GX"], {}, "GX: the model has no gene embedding; .*"),
        (["ctrl"], {}, "control cells are copied"),
        (["G0"], {"edit_fraction": 0.5}, "is not read by a Gaussian head"),
        (["G0"], {"condition_features": {"drug": "x.parquet"}}, "reads features of perturbation alone"),
    ],
)
def test_what_cannot_be_predicted_is_said(folder: Path, controls, names: list[str], options: dict, message: str):
    with pytest.raises(UserError, match=message):
        mdsc.predict_perturbations(folder / "run", controls, names, **options)


def test_the_command_writes_what_python_gives_and_the_harness_reads_it(folder: Path, controls, tmp_path: Path, capsys):
    output = tmp_path / "predicted.h5ad"
    flags = ["--checkpoint", str(folder / "run"), "--input", str(folder / "controls.h5ad"), "--perturbation", HELD_OUT]
    assert main(["sample", *flags, "--cells-per-perturbation", "24", "--output", str(output)]) == 0
    written = anndata.read_h5ad(output)
    python = mdsc.predict_perturbations(folder / "run", controls, [HELD_OUT], cells_per_perturbation=24)
    own = [x[x.obs["perturbation"] == HELD_OUT] for x in (written, python)]
    np.testing.assert_array_equal(*(np.asarray(x.X) for x in own))
    counts, labels = perturbed_counts()
    real = anndata.AnnData(counts, obs=pd.DataFrame(labels, index=[str(n) for n in range(len(labels["split"]))]))
    real.var_names = [f"G{number}" for number in range(NUM_GENES)]
    real.write_h5ad(tmp_path / "real.h5ad")
    scores = tmp_path / "scores.json"
    flags = ["--real", str(tmp_path / "real.h5ad"), "--predicted", str(output), "--json", str(scores)]
    assert main(["evaluate", "perturb", *flags, "--num-bootstrap", "20"]) == 0
    assert '"pearson_delta"' in scores.read_text()
    flags = ["--checkpoint", str(folder / "run"), "--input", str(folder / "controls.h5ad"), "--output", str(output)]
    assert main(["likelihood", *flags]) == 2
    assert "is a Gaussian head" in capsys.readouterr().err


def test_a_model_card_is_filled(folder: Path, tmp_path: Path):
    snapshot = take_snapshot(folder / "run", tmp_path / "snapshot", 6, with_picture=False)
    card = model_card(card_facts(snapshot, folder / "run"), "me/head", "mit")
    assert "gaussian-diffusion" in card
    assert "6 training perturbations" in card
    assert "| energy |" in card
    assert "mdsc.predict_perturbations" in card
    assert "tokenizer" not in card
    assert "Optimiser steps: 6" in card


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_pca_nothing_is_ever_nan(folder: Path, tmp_path: Path, seed: int):
    """All genes, of which one never varies, as latents; with each of the losses that could divide by a variance."""
    flags = ["--output-dir", str(tmp_path / "run"), "--gaussian.pca-size", "None", "--gaussian.set-loss", "energy"]
    flags += ["--train.max-steps", "60", "--train.validate-every", "60", "--seed", str(seed)]
    assert main(["train", *gaussian_flags(folder, *flags)]) == 0
    head = load_checkpoint(tmp_path / "run").model
    assert head.config.latent_size == NUM_GENES
    assert all(tensor.isfinite().all() for tensor in head.state_dict().values())
    predicted = mdsc.predict_perturbations(
        tmp_path / "run", anndata.read_h5ad(folder / "controls.h5ad"), [HELD_OUT], cells_per_perturbation=8
    )
    assert np.isfinite(predicted.X).all()
