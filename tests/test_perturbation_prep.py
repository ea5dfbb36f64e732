"""Perturb-seq cells of any file to a perturbation task: names, splits, genes, what is left out, what is written."""

import gzip
import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from shared_data import shared_file

from mdsc.cli import main as mdsc
from mdsc.data.level_features import LevelFeatures, read_features
from mdsc.data.perturbations import CONTROL
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.perturbation import main, save_task
from mdsc.prep.perturbation_splits import gears_simulation, published
from mdsc.prep.perturbation_task import perturbation_task

GENES = [f"G{number:02d}" for number in range(30)]
TARGETS = GENES[:12]


def labelled(labels, seed=0, num_genes=30, **obs):
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(rng.poisson(1.0, (len(labels), num_genes)).astype(np.float32))
    frame = pd.DataFrame({"label": labels} | obs, index=[f"c{row}" for row in range(len(labels))])
    return anndata.AnnData(counts, obs=frame, var=pd.DataFrame(index=GENES[:num_genes]))


def gears_file(path=None, cells_each=6, targets=TARGETS, **kwargs):
    """A file with all that GEARS' Adamson file has: logarithms in X, Ensembl ids, symbols in var.gene_name."""
    labels = ["ctrl"] * 40 + [f"{gene}+ctrl" for gene in targets for _ in range(cells_each)]
    adata = labelled(labels, **kwargs)
    adata.obs = pd.DataFrame({"condition": labels, "cell_type": "K562"}, index=adata.obs_names).astype("category")
    adata.var["gene_name"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    adata.layers["counts"] = adata.X.copy()
    adata.X.data = np.log1p(adata.X.data) * 0.77
    if path is not None:
        adata.write_h5ad(path)
    return adata


def vectors(names, size=4):
    return LevelFeatures(tuple(names), np.random.default_rng(1).normal(size=(len(names), size)), "vectors")


def quiet(*args, **options):
    return perturbation_task(*args, say=lambda line: None, **options)


def told(*args, **options):
    lines = []
    return perturbation_task(*args, say=lines.append, **options), "\n".join(lines)


def test_gears_file(tmp_path, capsys):
    adata = gears_file(tmp_path / "perturb_processed.h5ad")
    out = tmp_path / "task"
    main([str(tmp_path / "perturb_processed.h5ad"), "--output-dir", str(out)])
    printed = capsys.readouterr()
    assert "a file of GEARS, perturbations of obs.condition, counts of layer 'counts'" in printed.out
    assert printed.err == ""
    cells = anndata.read_h5ad(out / "cells.h5ad")
    assert cells.var_names.tolist() == GENES
    assert (adata.layers["counts"] != cells.X).nnz == 0
    assert cells.X.dtype == np.int32
    assert set(cells.obs["perturbation"]) == {CONTROL, *TARGETS}
    expected = gears_simulation([f"{gene}+ctrl" for gene in TARGETS], 1)
    perturbed = cells.obs[cells.obs["perturbation"] != CONTROL]
    assert dict(zip(perturbed["perturbation"], perturbed["split"], strict=True)) == expected
    controls = anndata.read_h5ad(out / "controls.h5ad")
    assert controls.obs["perturbation"].unique().tolist() == [CONTROL]
    assert controls.obs["split"].value_counts().to_dict() == {"train": 32, "test": 8}
    folder = ShardFolder.open(out / "shards")
    assert folder.condition_columns == ("perturbation",)
    assert {split: folder.num_cells(split) for split in folder.splits} == cells.obs["split"].value_counts().to_dict()
    about = json.loads((out / "task.json").read_text())
    assert about["split"] == "gears-simulation, seed 1"
    assert about["cells"]["train"][CONTROL] == 32
    assert about["options"]["split_seed"] == 1


def test_published_splits_are_those_of_the_rule():
    eighty_six = published("adamson-86", 1).split_of
    genes = sorted(eighty_six)
    assert len(genes) == 86
    for seed in range(1, 6):
        stored = published("adamson-86", seed).split_of
        assert stored == gears_simulation([f"{gene}+ctrl" for gene in reversed(genes)], seed)
        assert pd.Series(stored).value_counts().to_dict() == {"train": 57, "val": 7, "test": 22}
        fewer = published("adamson-81", seed).split_of
        assert fewer == gears_simulation(list(fewer), seed)
        assert pd.Series(fewer).value_counts().to_dict() == {"train": 54, "val": 6, "test": 21}
        assert set(fewer) < set(genes)
    assert "inferred" in published("adamson-81", 1).notes[0]
    with pytest.raises(UserError, match="--split-seed 1, 2, 3, 4, 5, not for 6"):
        published("adamson-86", 6)


def test_published_assignments_of_seed_1():
    """What others print of GEARS' 81 at seed 1 (Ahlmann-Eltze et al. 2025, notebook of single perturbations)."""
    of = published("adamson-81", 1).split_of
    assert {of[gene] for gene in ("AARS", "CHERP", "DARS", "DDOST", "EIF2B3")} == {"train"}
    assert {of[gene] for gene in ("COPB1", "DAD1", "DHDDS", "EIF2B2")} == {"test"}
    assert of["DERL2"] == "val"
    assert "AMIGO3" not in of


def test_gears_simulation_is_numpys_legacy_draw():
    genes = [f"g{number:03d}" for number in range(40)]
    np.random.seed(3)  # noqa: NPY002
    known = np.random.choice(np.unique(genes), int(0.75 * 40), replace=False)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    train = np.random.choice(np.unique(known), int(0.9 * len(known)), replace=False)  # noqa: NPY002
    split = gears_simulation([f"{gene}+ctrl" for gene in genes], 3)
    assert {gene for gene, part in split.items() if part == "test"} == set(genes) - set(known)
    assert {gene for gene, part in split.items() if part == "train"} == set(train)


def test_pairs_of_unknown_genes_are_never_for_training():
    genes = [f"g{number:02d}" for number in range(16)]
    pairs = [f"{one}+{other}" for one in genes[:8] for other in genes[8:]]
    split = gears_simulation([f"{gene}+ctrl" for gene in genes] + pairs, 2)
    known = {gene for gene in genes if split[gene] != "test"}
    seen = [pair for pair in pairs if set(pair.split("+")) <= known]
    assert len(known) == 12
    assert all(split[pair] == "test" for pair in pairs if pair not in seen)
    assert sum(split[pair] != "test" for pair in seen) == int(0.75 * len(seen))
    assert {split[pair] for pair in seen} == {"train", "val", "test"}


def test_scperturb_with_pairs():
    labels = ["control"] * 20 + ["A1_B1"] * 5 + ["B1_A1"] * 5 + ["A1"] * 5 + ["C1"] * 5 + ["nan"] * 2
    adata = labelled(labels, nperts=["2" if "_" in label else "1" for label in labels])
    adata.obs = adata.obs.rename(columns={"label": "perturbation"})
    task, lines = told(adata, joined_by="_", split=("leave-out", "C1"))
    assert task.obs["perturbation"].value_counts().to_dict() == {"ctrl": 20, "A1+B1": 10, "A1": 5, "C1": 5}
    assert "2 cells of 42 have no perturbation told" in lines
    _, lines = told(adata, split=("leave-out", "C1"))
    assert "several genes for 10 cells: what joins their names is --joined-by _" in lines


def test_names_of_guides_are_read_as_genes():
    guides = ["62(mod)_pBA581", "63(mod)_pBA580", "3x_neg_ctrl_pMJ144-1", "SPI1_pDS255", "SPI1_pDS256", "*"]
    guides += ["ATF6_only_pMJ145", "BHLHE40_pDS258"]
    adata = labelled(np.repeat(guides, 10))
    options = {"perturbation_column": "label", "split": ("leave-out", "SPI1")}
    task, lines = told(adata, **options)
    assert task.obs["perturbation"].value_counts().to_dict() == {"ctrl": 40, "SPI1": 20, "ATF6": 10, "BHLHE40": 10}
    assert "10 of the control cells are those of no guide" in lines
    task = quiet(adata, no_guide="leave-out", **options)
    assert (task.obs["perturbation"] == CONTROL).sum() == 30


def geo_folder(folder, prefix="GSM2406675_10X001_", num_cells=60, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    counts = rng.poisson(1.0, (num_cells, 30))
    barcodes = [f"{''.join(rng.choice(list('ACGT'), 14))}-{1 + row % 2}" for row in range(num_cells)]
    with gzip.open(folder / f"{prefix}matrix.mtx.txt.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(counts.T))
    genes = pd.DataFrame({"id": [f"ENSG{number:011d}" for number in range(30)], "symbol": GENES})
    genes.to_csv(folder / f"{prefix}genes.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(barcodes).to_csv(folder / f"{prefix}barcodes.tsv.gz", header=False, index=False)
    identities = pd.DataFrame(
        {
            "cell BC": barcodes[:-1],  # the last has no identity
            "guide identity": [["62(mod)_pBA581", "G01_pDS255", "G02_pDS266"][row % 3] for row in range(num_cells - 1)],
            "read count": 700,
            "UMI count": 30,
            "coverage": 20.1,
            "good coverage": [row != 5 for row in range(num_cells - 1)],
            "number of cells": [2 if row == 7 else 1 for row in range(num_cells - 1)],
        }
    )
    identities.to_csv(folder / f"{prefix}cell_identities.csv.gz", index=False)
    return counts, barcodes


def test_geo_files(tmp_path):
    counts, barcodes = geo_folder(tmp_path / "geo")
    task, lines = told(tmp_path / "geo", split=("leave-out", "G01"))
    kept = [row for row in range(59) if row not in (5, 7)]
    assert "GSM2406675_10X001: 57 of 60 cells have one guide with good coverage" in lines
    assert task.obs_names.tolist() == [barcodes[row] for row in kept]
    assert (task.X.toarray() == counts[kept]).all()
    assert task.var_names.tolist() == GENES
    assert task.obs["perturbation"].tolist() == [["ctrl", "G01", "G02"][row % 3] for row in kept]
    assert task.obs["batch"].tolist() == [str(1 + row % 2) for row in kept]
    assert task[task.obs["perturbation"] == "G01"].obs["split"].unique().tolist() == ["test"]
    geo_folder(tmp_path / "geo", "GSM2406676_10X002_", seed=1)
    task = quiet(tmp_path / "geo", split=("leave-out", "G01"))
    assert task.n_obs == 114
    assert task.obs["batch"].nunique() == 4
    (tmp_path / "geo" / "GSM2406676_10X002_genes.tsv.gz").unlink()
    with pytest.raises(UserError, match=r"sample GSM2406676_10X002 lacks genes\.tsv"):
        quiet(tmp_path / "geo")


def test_control_reference_is_by_batch_and_by_name():
    adata = labelled(["control"] * 100 + GENES[:1] * 20 + GENES[1:2] * 20)
    adata.obs["batch"] = ["a"] * 70 + ["b"] * 70
    options = {"perturbation_column": "label", "split": ("leave-out", "G01")}
    task = quiet(adata, **options)
    controls = task.obs[task.obs["perturbation"] == CONTROL]
    assert controls[controls["split"] == "test"]["batch"].value_counts().to_dict() == {"a": 14, "b": 6}
    shuffled = quiet(adata[np.random.default_rng(0).permutation(140)], **options)
    assert shuffled.obs.loc[task.obs_names, "split"].tolist() == task.obs["split"].tolist()
    task = quiet(adata, control_reference=0.0, **options)
    assert (task.obs[task.obs["perturbation"] == CONTROL]["split"] == "train").all()


def test_folds_hold_out_every_gene_once():
    adata = gears_file()
    tested = [
        set(task.obs["perturbation"][task.obs["split"] == "test"]) - {CONTROL}
        for fold in range(5)
        for task in [quiet(adata, split="folds", fold=fold)]
    ]
    assert sum(map(len, tested)) == 12
    assert set.union(*tested) == set(TARGETS)
    one_out = [quiet(adata, split="leave-one-out", fold=fold) for fold in (0, 11)]
    assert [set(task.obs["perturbation"][task.obs["split"] == "test"]) for task in one_out] == [
        {CONTROL, "G00"},
        {CONTROL, "G11"},
    ]
    with pytest.raises(UserError, match="--fold 5: there are folds 0 to 4"):
        quiet(adata, split="folds", fold=5)
    with pytest.raises(UserError, match="--fold 12"):
        quiet(adata, split="leave-one-out", fold=12)


def test_a_pair_with_a_held_out_gene_is_for_test():
    labels = ["ctrl"] * 20 + ["A1+ctrl"] * 5 + ["A1+B1"] * 5 + ["B1+C1"] * 5 + ["B1+ctrl"] * 5
    task = quiet(labelled(labels), perturbation_column="label", split=("leave-out", "A1"))
    of = dict(zip(task.obs["perturbation"], task.obs["split"], strict=True))
    assert {name for name, split in of.items() if split == "test" and name != CONTROL} == {"A1", "A1+B1"}


def test_cell_type_split_keeps_the_controls_of_the_held_out_type():
    adata = labelled(["control", "stim"] * 60, kind=["B"] * 40 + ["T"] * 80)
    task = quiet(
        adata, perturbation_column="label", cell_type_column="kind", split="cell-type", held_out="T"
    )  # fmt: skip
    perturbed = task.obs[task.obs["perturbation"] == "stim"]
    assert perturbed.groupby("cell_type", observed=True)["split"].unique().map(list).to_dict() == {
        "B": ["train"],
        "T": ["test"],
    }
    controls = task.obs[(task.obs["perturbation"] == CONTROL) & (task.obs["cell_type"] == "T")]
    assert controls["split"].value_counts().to_dict() == {"train": 32, "test": 8}
    with pytest.raises(UserError, match="--held-out t: no cell is of this type; perhaps you meant T"):
        quiet(adata, perturbation_column="label", cell_type_column="kind", split="cell-type", held_out="t")
    with pytest.raises(UserError, match="belong together"):
        quiet(adata, perturbation_column="label", split="cell-type")


def test_split_file_and_column(tmp_path):
    adata = gears_file()
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["G01+ctrl", "G02"], "val": ["G03"], "test": ["G04", "NOWHERE"]}))
    task, lines = told(adata, split_file=path)
    assert "split.json) names 1 perturbations of no cell: NOWHERE" in lines
    assert "8 perturbations are left out, no part of the split: G00, G05" in lines
    perturbed = task.obs[task.obs["perturbation"] != CONTROL].drop_duplicates("perturbation")
    found = dict(zip(perturbed["perturbation"], perturbed["split"], strict=True))
    assert found == {"G01": "train", "G02": "train", "G03": "val", "G04": "test"}
    adata.obs["mine"] = np.where(adata.obs["condition"] == "G00+ctrl", "test", "train")
    assert (quiet(adata, split_column="mine").obs["split"] == adata.obs["mine"]).all()
    path.write_text(json.dumps({"train": ["G01"], "test": ["ctrl+G01"]}))
    with pytest.raises(UserError, match="has G01 in train and in test"):
        quiet(adata, split_file=path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="is not of the form"):
        quiet(adata, split_file=path)


def test_variable_genes_are_those_of_training_cells():
    rng, num_genes = np.random.default_rng(0), 300
    # Genes of all levels, and some that are on or off: 20 to 24 among test cells alone, 10 to 12 among the others.
    counts = rng.poisson(rng.uniform(1, 6, num_genes), (120, num_genes))
    counts[90:, 20:25] = 6 * rng.integers(0, 2, (30, 5))
    counts[:90, 10:13] = 6 * rng.integers(0, 2, (90, 3))
    obs = pd.DataFrame({"label": ["control"] * 60 + ["G00"] * 30 + ["G01"] * 30}).set_index(np.arange(120).astype(str))
    var = pd.DataFrame(index=[f"G{number:02d}" for number in range(num_genes)])
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)
    options = {"perturbation_column": "label", "split": ("leave-out", "G01"), "control_reference": 0.0}
    task = quiet(adata, num_genes=5, **options)
    assert task.var_names.tolist() == ["G00", "G01", "G10", "G11", "G12"]
    assert (task.X.toarray() == counts[:, [0, 1, 10, 11, 12]]).all()
    with pytest.raises(UserError, match="--num-genes 1: 2 measured genes were perturbed"):
        quiet(adata, num_genes=1, **options)


def test_what_is_left_out_is_told(tmp_path):
    adata = gears_file(targets=TARGETS[:6])
    few = ["G05+ctrl"] * 2 + ["ctrl"] * 4
    adata.obs["condition"] = adata.obs["condition"].astype(str).to_numpy()
    adata.obs.iloc[-6:, 0] = few
    known = vectors(["G00", "G01", "G02", "ctrl", "OTHER"])
    task, lines = told(adata, known, split=("leave-out", "G00", "G04"))
    assert "1 perturbations are left out, fewer than 5 cells (--min-cells): G05" in lines
    assert "1 perturbations are left out, no embedding, and for validation or test: G04" in lines
    assert "1 training perturbations have no embedding, and are told by name alone: G03" in lines
    assert set(task.obs["perturbation"]) == {CONTROL, "G00", "G01", "G02", "G03"}
    assert task.uns["task"]["left_out"].keys() == {"G04", "G05"}
    save_task(task, tmp_path / "task", known)
    stored = read_features(tmp_path / "task" / "features.parquet")
    assert set(stored.names) == {"ctrl", "G00", "G01", "G02", "OTHER"}
    assert not stored.values[stored.names.index("ctrl")].any()


def test_pairs_get_the_sum_of_their_vectors(tmp_path):
    labels = ["ctrl"] * 20 + ["A1+ctrl"] * 5 + ["B1+A1"] * 5 + ["B1+ctrl"] * 5
    adata = labelled(labels)
    features = vectors(["A1", "B1", "C1"])
    task = quiet(adata, features, perturbation_column="label", split=("leave-out", "B1"))
    save_task(task, tmp_path / "task", features)
    stored = read_features(tmp_path / "task" / "features.parquet")
    of = dict(zip(stored.names, stored.values, strict=True))
    assert of.keys() == {"A1", "B1", "C1", "A1+B1", "ctrl"}
    np.testing.assert_allclose(of["A1+B1"], of["A1"] + of["B1"], atol=1e-6)
    assert not of["ctrl"].any()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"control_label": "contrl"}, "no cells of --control-label 'contrl': perhaps you meant ctrl"),
        ({"ctrl": "mock"}, {}, "has no control cells"),
        ({}, {"perturbation_column": "conditon"}, "perhaps you meant condition"),
        ({}, {"split": "gears"}, "--split gears: there are gears-simulation, adamson-81"),
        ({}, {"split": ("leave-out", "G9")}, "--split leave-out G9: no cell has it"),
        ({}, {"split": ("leave-out", *TARGETS)}, "leaves no perturbed cells for train"),
        ({}, {"split": ("leave-out",)}, "needs genes"),
        ({}, {"control_reference": 1.5}, "--control-reference 1.5 is no share"),
        ({}, {"layer": "X"}, "not raw counts.*layer 'counts'"),
    ],
)
def test_mistakes_are_told_in_a_line(change, options, message):
    adata = gears_file()
    adata.obs["condition"] = adata.obs["condition"].astype(str).replace(change)
    with pytest.raises(UserError, match=f"(?s){message}") as raised:
        quiet(adata, **options)
    assert str(raised.value).count("\n") <= 1


def test_files_without_counts_are_refused():
    adata = gears_file()
    del adata.layers["counts"]
    with pytest.raises(UserError, match="not raw counts"):
        quiet(adata)


def test_symbols_that_repeat_themselves_are_added_up():
    adata = gears_file()
    adata.var["gene_name"] = ["G00", "G00", *GENES[2:]]
    task, lines = told(adata)
    assert "1 genes have a symbol that another has too" in lines
    first = adata.layers["counts"][:, :2].sum(axis=1)
    assert (task[:, "G00"].X.toarray() == np.asarray(first)).all()
    assert task.n_vars == 29


def test_only_a_tasks_folder_is_replaced(tmp_path, capsys):
    adata = gears_file(tmp_path / "in.h5ad")
    out = tmp_path / "task"
    save_task(quiet(adata), out)
    assert mdsc(["prepare", "perturbation", str(tmp_path / "in.h5ad"), "--output-dir", str(out)]) == 0
    (out / "notes.txt").write_text("mine")
    assert mdsc(["prepare", "perturbation", str(tmp_path / "in.h5ad"), "--output-dir", str(out)]) == 2
    assert "holds other files, which would be lost (notes.txt)" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "cells.h5ad").write_text("no task's")
    with pytest.raises(UserError, match=r"would be lost \(cells\.h5ad\)"):
        save_task(quiet(adata), tmp_path / "own")


def test_real_files():
    task = quiet(
        shared_file("papalexi2021_crispr.h5ad"),
        perturbation_column="perturbation_top",
        batch_column="bio_rep",
        split="folds",
    )
    perturbed = task.obs[task.obs["perturbation"] != CONTROL]
    assert perturbed[perturbed["split"] == "test"]["perturbation"].nunique() == 5
    assert task.n_obs == 20729
    pilot = quiet(shared_file("adamson2016_pilot.h5ad"), split=("leave-out", "SPI1"))  # names of guides
    assert pilot.obs["perturbation"].value_counts().to_dict() == dict.fromkeys(
        ["ctrl", "SPI1", "BHLHE40", "ZNF326", "SNAI1", "EP300"], 60
    )
