"""The benchmark of the parent's faults: its figures are exact where they can be, and all of it runs."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from shared_data import ROOT
from tiny_perturbed import gaussian_config, perturbed_counts, perturbed_shards

sys.path.insert(0, str(ROOT / "benchmarks"))
from perturbation_fault_figures import NONE, OTHER, OWN, noise_errors, own_axes, permuted_noise, set_loss_floors
from perturbation_faults import main

from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.shards import ShardFolder
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.paired_batches import LatentCells
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.perturbed_cells import PerturbedCells, training_and_validation
from mdsc.training.gaussian_run import prepare_gaussian
from mdsc.training.head_checks import check_head


def prepared(folder: Path, say=lambda text: None, *flags: str):
    config = gaussian_config(folder, *flags)
    return config, prepare_gaussian(config, Accelerator(cpu=True), ShardFolder.open(config.data.dir), None, say)


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> tuple[GaussianHead, PerturbedCells]:
    """An untrained head that predicts noise, and its training cells."""
    folder = tmp_path_factory.mktemp("parent")
    perturbed_shards(folder)
    flags = ("--gaussian.target", "epsilon", "--gaussian.start", "none", "--gaussian.sampler", "ddpm")
    config, parts = prepared(folder, lambda text: None, *flags)
    cells, _ = training_and_validation(ShardFolder.open(config.data.dir), config.gaussian, 0.1)
    return parts.model, PerturbedCells(cells.counts, cells.perturbation, cells.context, np.full(len(cells), ""), "ctrl")


def test_true_noise_in_another_order_is_perfect_by_the_biased_losses_alone():
    for size in (8, 64):
        found = permuted_noise(32, size, 50, seed=1)
        assert found["MMD, biased"] == pytest.approx(0, abs=1e-6)
        assert found["energy, biased"] == pytest.approx(0, abs=1e-5)
        assert found["squared error"] == pytest.approx(2, abs=0.06)
        # U = (n V - E|x - x'|) / (n - 1), with V = 0
        assert found["energy, unbiased"] == pytest.approx(-mean_distance(50) / size, rel=0.02)


def test_the_biased_floor_is_the_mean_distance_over_the_number_of_cells():
    for size in (16, 64):
        found = set_loss_floors(64, size, 50, seed=1)
        assert found["energy, biased"] == pytest.approx(mean_distance(50) / size, rel=0.1)
        assert abs(found["energy, unbiased"]) < 0.15 * found["energy, biased"]
        assert abs(found["MMD, unbiased"]) < 0.15 * found["MMD, biased"]
    assert mean_distance(50) / 64 == pytest.approx(0.152, abs=0.005), "research's figure, of another implementation"


def mean_distance(d: int) -> float:
    """E|x - x'| of two draws of N(0, I)."""
    return 2 * math.gamma((d + 1) / 2) / math.gamma(d / 2)


def errors_of(head: GaussianHead, cells: PerturbedCells, draws: int = 20) -> dict[str, float]:
    return noise_errors(head, cells, cells, draws=draws, most_cells=len(cells), seed=0)


def latents_of(head: GaussianHead, cells: PerturbedCells) -> dict[str, torch.Tensor]:
    """x0 of each perturbation: the untrained head is centred at the control cells."""
    panel = LatentCells(cells, head)
    centre = panel.pooled["", None]
    return {unit.perturbation: panel.latents(cells.rows_of[unit]) - centre for unit in cells.units()}


def test_a_network_that_says_nothing_has_an_error_of_1_whatever_it_is_told(parent):
    found = errors_of(*parent)
    assert found[OWN] == found[OTHER] == found[NONE] == pytest.approx(1, abs=0.03)
    assert found["floor, perturbation known"] < found["floor"] < 0.5


def test_who_knows_no_condition_is_left_with_the_floor(parent, monkeypatch: pytest.MonkeyPatch):
    head, cells = parent
    x0 = torch.cat(list(latents_of(head, cells).values()))
    mean, variance = x0.mean(dim=0), x0.var(dim=0)

    def best(x, time, condition, group_size=1):  # linear in x: its error hangs on first and second moments alone
        ratio = torch.exp(4 * time)[:, None]
        alpha, sigma = 1 / torch.hypot(ratio, torch.ones(())), ratio / torch.hypot(ratio, torch.ones(()))
        return sigma * (x - alpha * mean) / (alpha.square() * variance + sigma.square())

    monkeypatch.setattr(head.denoiser, "forward", best)
    found = errors_of(head, cells, draws=40)
    assert found[OWN] == found[OTHER] == found[NONE] == pytest.approx(found["floor"], rel=0.04)


def test_who_knows_the_perturbation_is_wrong_when_told_another(parent, monkeypatch: pytest.MonkeyPatch):
    head, cells = parent
    of_name = latents_of(head, cells)
    names = tuple(of_name)
    table, means = head.vectors_of(names), torch.stack([of_name[name].mean(dim=0) for name in names])

    def guess(x, time, condition, group_size=1):
        vector = condition[:, 2 : 2 + table.shape[1]]
        mean = means[torch.cdist(vector, table).argmin(dim=1)]
        ratio = torch.exp(4 * time)[:, None]
        alpha, sigma = 1 / torch.hypot(ratio, torch.ones(())), ratio / torch.hypot(ratio, torch.ones(()))
        return (x - alpha * mean) / sigma

    monkeypatch.setattr(head.denoiser, "forward", guess)
    found = errors_of(head, cells, draws=10)
    assert found[OWN] < 0.9 * found[OTHER]


def test_real_cells_by_their_own_pca_are_lost_along_the_axes_of_training():
    counts, labels = perturbed_counts(40)
    held_out = np.array(labels["split"]) == "test"
    nothing = np.full(len(held_out), "")
    cells = PerturbedCells(counts, np.array(labels["perturbation"]), nothing, nothing, "ctrl")
    training, test = cells.select(np.flatnonzero(~held_out)), cells.select(np.flatnonzero(held_out))
    perturbed = test.select(np.flatnonzero(test.perturbation != "ctrl"))
    basis = PcaBasis.fit(training.expression(np.arange(len(training))), 6, seed=0)
    found = own_axes(basis, training, perturbed)
    own, of_training = found["the cells themselves"], found["training cells"]
    assert own["error"] > 1.2 * of_training["error"]
    assert own["pearson_delta"] < of_training["pearson_delta"] - 0.1
    same = own_axes(PcaBasis.fit(perturbed.expression(np.arange(len(perturbed))), 6, seed=0), training, perturbed)
    assert same["axes"] == pytest.approx({"cosine": 1, "reversed": 0, "of": 6}, abs=1e-4)
    assert same["the cells themselves"]["error"] == pytest.approx(same["training cells"]["error"], rel=1e-3)


def test_the_parents_config_is_what_it_says_and_a_sampler_that_noise_does_not_suit_is_told(tmp_path: Path):
    config = parse(TrainConfig, ["--config", str(ROOT / "configs" / "adamson_parent.yaml")])
    check_head(config, num_processes=1)
    options = config.gaussian
    assert (options.target, options.noise, options.sampler, options.num_steps) == ("epsilon", "linear", "ddpm", 1000)
    assert (options.denoiser, options.set_loss, options.pca_fit) == ("mlp", "noise_mmd", "per_split")
    perturbed_shards(tmp_path)
    for sampler, expected in (("unipc", 1), ("ddpm", 0)):
        told: list[str] = []
        prepared(tmp_path, told.append, "--gaussian.target", "epsilon", "--gaussian.sampler", sampler)
        assert sum("--gaussian.target epsilon" in text for text in told) == expected


def test_all_of_it_runs_and_is_done_once(tmp_path: Path, capsys):
    flags = ["--quick", "--work-dir", str(tmp_path / "work"), "--markdown", str(tmp_path / "faults.md")]
    main([*flags, "--json", str(tmp_path / "one.json")])
    found = json.loads((tmp_path / "one.json").read_text())
    values = found["runs"][0]["scores"]["values"]
    ours = {"parent", "parent, PCA of training", "parent, unipc 20", "ours", "ours, PCA per split", "oracle"}
    assert ours | {"perturbed_mean", "ridge", "nearest_cells", "split_half"} <= values.keys()
    assert values["ours"] != values["ours, PCA per split"]
    assert np.mean(values["parent"]["e_distance"]) > np.mean(values["split_half"]["e_distance"])
    assert {name.split()[0] for name in found["walks"][0]["seconds"]} >= {
        "ddpm",
        "ddim",
        "dpm++",
        "unipc",
        "flow_euler",
    }
    text = (tmp_path / "faults.md").read_text()
    assert text.count("\n## ") == 6
    assert "| ours, PCA per split |" in text
    assert "nan" not in text
    main([*flags, "--json", str(tmp_path / "two.json")])
    assert json.loads((tmp_path / "two.json").read_text()) == found, "nothing was done anew, no second was measured"
    capsys.readouterr()
