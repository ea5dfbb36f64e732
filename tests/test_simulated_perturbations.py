"""Simulated Perturb-seq in GEARS' format: its columns, what embeddings tell of its effects, and the oracle."""

import json

import anndata
import numpy as np
import pytest

from mdsc.cli import main as mdsc
from mdsc.data.level_features import LevelFeatures, read_features
from mdsc.data.log_expression import log_normalised
from mdsc.data.perturbations import CONTROL
from mdsc.errors import UserError
from mdsc.prep.perturbation_task import perturbation_task
from mdsc.prep.perturbation_truth import KNOCK_DOWN, CellStates, PerturbationSimulation, draw_counts, random_embeddings
from mdsc.prep.simulated_perturbations import SimulatePerturbationsConfig, simulate_perturbations, truth_of

SMALL = PerturbationSimulation(num_perturbations=16, num_cells=3000, num_genes=120, median_depth=3000.0)


@pytest.fixture(scope="module")
def simulated():
    return simulate_perturbations(SMALL, oracle_cells=60)


def means_by(logs, labels):
    return {name: np.asarray(logs[np.flatnonzero(labels == name)].mean(axis=0)).ravel() for name in set(labels)}


def variance(values):
    return np.square(values).mean()


def test_the_format_is_that_of_gears_file(simulated):
    cells, _ = simulated
    assert cells.shape == (3000, 120)
    columns = {"condition", "cell_type", "dose_val", "control", "condition_name"}
    assert columns <= set(cells.obs)
    assert {name.removesuffix("+ctrl") for name in cells.obs["condition"]} == {
        CONTROL,
        *random_embeddings(SMALL).names,
    }
    perturbed = cells.obs[cells.obs["condition"] != CONTROL].iloc[0]
    assert perturbed["condition_name"] == f"K562(?)_{perturbed['condition']}_1+1"
    assert perturbed["dose_val"] == "1+1"
    assert ((cells.obs["control"] == 1) == (cells.obs["condition"] == CONTROL)).all()
    counts = cells.layers["counts"]
    assert (counts.data == np.rint(counts.data)).all()
    np.testing.assert_allclose(cells.X.toarray(), log_normalised(counts.astype(np.int32)).toarray(), rtol=1e-5)
    assert cells.var_names[0].startswith("ENSG")
    assert cells.var["gene_name"].is_unique
    for key in ("rank_genes_groups_cov_all", "top_non_dropout_de_20", "non_zeros_gene_idx"):
        assert set(cells.uns[key]) == set(cells.obs["condition_name"]) - {"K562(?)_ctrl_1"}
    ranked = cells.uns["rank_genes_groups_cov_all"][perturbed["condition_name"]]
    assert sorted(ranked) == sorted(cells.var_names)


def test_targets_are_knocked_down(simulated):
    cells, _ = simulated
    labels = cells.obs["condition"].astype(str).str.removesuffix("+ctrl").to_numpy()
    means = means_by(cells.layers["counts"], labels)
    place = {gene: number for number, gene in enumerate(cells.var["gene_name"])}
    left = [means[name][place[name]] / means[CONTROL][place[name]] for name in means if name != CONTROL]
    assert max(left) < 0.6
    assert np.mean(left) == pytest.approx(0.9 * 0.2 + 0.1, abs=0.1)  # a tenth of the guides do nothing


def test_ranked_genes_are_scanpys(simulated):
    scanpy = pytest.importorskip("scanpy")
    cells, _ = simulated
    names = list(cells.uns["rank_genes_groups_cov_all"])[:3]
    cells = cells.copy()
    with np.errstate(all="ignore"):
        scanpy.tl.rank_genes_groups(
            cells, "condition_name", groups=names, reference="K562(?)_ctrl_1", rankby_abs=True, method="t-test"
        )
    for name in names:
        ours = cells.uns["rank_genes_groups_cov_all"][name]
        theirs = cells.uns["rank_genes_groups"]["names"][name]
        assert list(ours[:15]) == list(theirs[:15])


def test_shares_of_the_effects_are_those_asked_for():
    config = PerturbationSimulation(
        num_perturbations=40, num_cells=800, num_genes=600, effect_size=0.5, systematic=0.5, unexplained=0.4
    )
    truth = truth_of(config, None)
    place = {gene: number for number, gene in enumerate(truth.genes)}
    targets = np.zeros_like(truth.told, dtype=bool)
    for number, gene in enumerate(truth.perturbations[1:], start=1):
        targets[number, place[gene]] = True
        assert truth.told[number, place[gene]] == -KNOCK_DOWN
    told, own = (np.where(targets, 0, part)[1:] for part in (truth.told, truth.own))
    assert variance(own) == pytest.approx(0.25 * 0.5 * 0.4, rel=0.05)
    assert variance(told - told.mean(axis=0)) == pytest.approx(0.25 * 0.5 * 0.6, rel=0.1)
    assert variance(told.mean(axis=0)) == pytest.approx(0.25 * 0.5, rel=0.1)
    assert not truth.told[0].any()
    assert not truth.own[0].any()


def test_what_is_told_is_linear_in_the_embedding():
    rng = np.random.default_rng(0)
    embeddings = LevelFeatures(tuple(f"P{n}" for n in range(30)), rng.normal(size=(30, 8)), "vectors")
    config = PerturbationSimulation(num_perturbations=30, num_cells=600, num_genes=100, num_components=3)
    truth = truth_of(config, embeddings)
    rest = [number for number, gene in enumerate(truth.genes) if gene not in embeddings.names]
    told = truth.told[1:][:, rest]
    rows = [embeddings.names.index(name) for name in truth.perturbations[1:]]
    inputs = np.column_stack([embeddings.values[rows], np.ones(30)])
    fitted = inputs @ np.linalg.lstsq(inputs, told, rcond=None)[0]
    np.testing.assert_allclose(fitted, told, atol=1e-8)
    assert np.linalg.matrix_rank(told - told.mean(axis=0), tol=1e-6) == 3
    own = truth.own[1:][:, rest]
    assert variance(own - inputs @ np.linalg.lstsq(inputs, own, rcond=None)[0]) > 0.5 * variance(own)


def test_counts_are_seeded_and_have_the_means_of_the_truth():
    truth = truth_of(SMALL, None)
    number = 4000
    cells = CellStates(
        np.full(number, 3),
        np.zeros(number, dtype=int),
        np.ones(number, dtype=int),
        np.zeros(number),
        np.ones(number),
        np.full(number, 2000.0),
    )
    counts = np.concatenate(list(draw_counts(truth, cells, stream=7)))
    again = np.concatenate(list(draw_counts(truth, cells, stream=7)))
    assert (counts == again).all()
    log_rates = truth.base + truth.states[1] + truth.batches[0] + truth.cycle[0] + truth.told[3] + truth.own[3]
    means = 2000 * np.exp(log_rates) / np.exp(log_rates).sum()
    error = np.sqrt((means + means**2 / truth.dispersion) / number)
    assert np.abs((counts.mean(axis=0) - means) / error).max() < 5
    assert np.allclose(counts.var(axis=0)[means > 5], (means + means**2 / truth.dispersion)[means > 5], rtol=0.4)


def test_the_oracle_predicts_what_embeddings_tell(simulated):
    cells, oracle = simulated
    labels = cells.obs["condition"].astype(str).str.removesuffix("+ctrl").to_numpy()
    predicted = oracle.obs["perturbation"].astype(str).to_numpy()
    assert oracle.var_names.tolist() == cells.var["gene_name"].tolist()
    assert oracle.X.dtype == np.float32
    real = oracle[predicted == CONTROL]
    controls = cells[labels == CONTROL]
    assert real.obs_names.tolist() == controls.obs_names.tolist()
    assert (real.layers["counts"] != controls.layers["counts"]).nnz == 0
    assert (real.obs["batch"].astype(str) == controls.obs["batch"].astype(str)).all()
    made = oracle[predicted != CONTROL].obs
    assert made["perturbation"].value_counts()[made["perturbation"].unique()].tolist() == [60] * 16
    assert set(made["control_cell"]) <= set(controls.obs_names)
    batch_of = controls.obs["batch"].astype(str).to_dict()
    assert made["batch"].astype(str).tolist() == [batch_of[name] for name in made["control_cell"]]
    of_cells, of_oracle = means_by(cells.X, labels), means_by(oracle.X, predicted)
    centre = np.mean([of_cells[name] for name in of_cells if name != CONTROL], axis=0)

    def correlation(name, other):
        return np.corrcoef(of_oracle[other] - centre, of_cells[name] - centre)[0, 1]

    names = [name for name in of_cells if name != CONTROL]
    own = [correlation(name, name) for name in names]
    others = [correlation(name, other) for name, other in zip(names, names[1:] + names[:1], strict=True)]
    assert np.mean(own) > 0.5
    assert abs(np.mean(others)) < 0.25


def test_without_own_effects_the_oracle_has_the_law_of_the_cells():
    config = PerturbationSimulation(
        num_perturbations=4, num_cells=4000, num_genes=60, unexplained=0.0, median_depth=2000.0
    )
    cells, oracle = simulate_perturbations(config, oracle_cells=1500)
    labels = cells.obs["condition"].astype(str).str.removesuffix("+ctrl").to_numpy()
    predicted = oracle.obs["perturbation"].astype(str).to_numpy()
    for name in sorted(set(labels) - {CONTROL}):
        real, made = cells.X[np.flatnonzero(labels == name)].toarray(), oracle.X[np.flatnonzero(predicted == name)]
        made = made.toarray()
        error = np.sqrt(real.var(axis=0) / len(real) + made.var(axis=0) / len(made))
        assert np.abs((real.mean(axis=0) - made.mean(axis=0)) / error).max() < 5
        np.testing.assert_allclose(made.std(axis=0).mean(), real.std(axis=0).mean(), rtol=0.05)


def test_a_task_is_made_of_the_file(simulated):
    cells, _ = simulated
    lines = []
    task = perturbation_task(cells, random_embeddings(SMALL), say=lines.append)
    assert lines[0].startswith("the AnnData: a file of GEARS")
    assert task.var_names.tolist() == cells.var["gene_name"].tolist()
    assert (cells.layers["counts"].astype(np.int32) != task.X).nnz == 0
    assert task.obs["batch"].nunique() == 4
    assert task.uns["task"]["without_embedding"] == []


def test_the_command_writes_file_embeddings_and_oracle(tmp_path, capsys):
    flags = "--num-perturbations 5 --num-cells 400 --num-genes 40 --median-depth 500 --oracle-cells 10"
    files = ["--output", str(tmp_path / "sim.h5ad"), "--oracle", str(tmp_path / "oracle.h5ad")]
    assert mdsc(["prepare", "simulate-perturbations", *files, *flags.split()]) == 0
    assert "random embeddings of 5 invented genes" in capsys.readouterr().out
    cells, oracle = (anndata.read_h5ad(tmp_path / name) for name in ("sim.h5ad", "oracle.h5ad"))
    stored = read_features(tmp_path / "sim_embeddings.parquet")
    assert {f"{name}+ctrl" for name in stored.names} | {CONTROL} == set(cells.obs["condition"])
    assert json.loads(cells.uns["simulation"]["config"])["num_cells"] == 400
    assert cells.uns["simulation"]["effects_told"].shape == (6, 40)
    assert oracle.uns["mdsc"]["task"] == "perturbation"
    names = tmp_path / "genes.txt"
    names.write_text("ACTB\nGAPDH\n")
    files = ["--output", str(tmp_path / "again.h5ad"), "--gene-embeddings", str(tmp_path / "sim_embeddings.parquet")]
    assert mdsc(["prepare", "simulate-perturbations", *files, *flags.split(), "--genes", str(names)]) == 0
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    assert {"ACTB", "GAPDH", *stored.names} < set(again.var["gene_name"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_perturbations": 2000}, "no more than --num-genes"),
        ({"num_cells": 100}, "give 20 for each perturbation"),
        ({"unexplained": 1.5}, "--unexplained 1.5 is no share"),
        ({"control_share": 0.0}, "--control-share 0.0 is no share"),
        ({"num_batches": 0}, "1 or more components"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        PerturbationSimulation(**options)


def test_too_few_embeddings_are_told_and_full_is_adamsons_size(tmp_path):
    few = LevelFeatures(("A", "B", CONTROL), np.eye(3), "few.csv")
    with pytest.raises(UserError, match=r"few\.csv has 2 genes: give --num-perturbations 2 or fewer"):
        truth_of(SMALL, few)
    alike = LevelFeatures(("A", "B"), np.ones((2, 3)), "alike.csv")
    with pytest.raises(UserError, match="are all the same"):
        truth_of(PerturbationSimulation(num_perturbations=2, num_cells=40, num_genes=10), alike)
    sized = SimulatePerturbationsConfig(output=tmp_path / "x.h5ad", full=True).sized
    assert (sized.num_cells, sized.num_genes) == (68_603, 5_060)


def test_the_oracle_knows_nothing_of_what_no_embedding_tells():
    config = PerturbationSimulation(
        num_perturbations=4, num_cells=1000, num_genes=60, unexplained=1.0, effect_size=1.0, median_depth=2000.0
    )
    cells, oracle = simulate_perturbations(config, oracle_cells=1000)
    labels = cells.obs["condition"].astype(str).str.removesuffix("+ctrl").to_numpy()
    predicted = oracle.obs["perturbation"].astype(str).to_numpy()
    rest = [number for number, gene in enumerate(oracle.var_names) if gene.startswith("SIM")]
    of_cells, of_oracle = means_by(cells.X[:, rest], labels), means_by(oracle.X[:, rest], predicted)
    names = sorted(set(labels) - {CONTROL})
    differ = np.abs(of_cells[names[0]] - of_cells[names[1]]).max()
    assert np.abs(of_oracle[names[0]] - of_oracle[names[1]]).max() < 0.4 < differ


def test_predicted_cells_keep_what_their_control_cells_are():
    truth = truth_of(SMALL, None)
    cells = CellStates.of(truth)
    rows = np.array([5, 17, 3, 2000])
    under = cells.perturbed_in(rows, 4, seed=0)
    for name in ("batch", "state", "phase", "depth"):
        assert (getattr(under, name) == getattr(cells, name)[rows]).all()
    assert under.perturbation.tolist() == [4] * 4
