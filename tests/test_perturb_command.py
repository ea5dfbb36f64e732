"""`mdsc evaluate perturb`: files as sample.py writes them, JSON, reports, splits, and a user's mistakes."""

import json
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from perturbed_cells import simulated

from mdsc.cli import main
from mdsc.data.log_expression import log_normalised

MADE = simulated(num_perturbations=10, num_test=4, cells=25)
TEST = ("G6", "G7", "G8", "G9")


def write_prediction(path: Path, names=TEST, counts=False, seed=0, genes=None) -> None:
    """Controls first, as sample.py copies them in."""
    parts = [MADE.counts("", name, 20, seed + place) for place, name in enumerate(["ctrl", *names])]
    values = sp.csr_matrix(np.concatenate(parts))
    logs = values if counts else log_normalised(values).astype(np.float32)
    obs = pd.DataFrame(
        {"perturbation": np.repeat(["ctrl", *names], 20)}, index=[f"p{n}" for n in range(len(parts) * 20)]
    )
    adata = anndata.AnnData(logs, obs=obs, var=MADE.adata.var.copy(), layers={"expected": logs * 0.9})
    (adata if genes is None else adata[:, genes].copy()).write_h5ad(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("perturb")
    MADE.adata.write_h5ad(folder / "real.h5ad")
    write_prediction(folder / "pred.h5ad")
    names = list(MADE.vectors)
    table = {"name": names, "features": [MADE.vectors[name].tolist() for name in names]}
    pq.write_table(pa.table(table), folder / "features.parquet")
    (folder / "go.gmt").write_text("one\t\tG0\tG1\tG2\tG6\tG7\ntwo\t\tG3\tG4\tG2\tG8\tG9\n")
    return folder


def evaluate(folder: Path, *flags: str, real="real.h5ad", predicted=("pred.h5ad",)) -> dict:
    files = [text for name in predicted for text in ("--predicted", name)]
    arguments = ["--real", str(folder / real), *files, "--num-bootstrap", "50", "--json", str(folder / "scores.json")]
    assert main(["evaluate", "perturb", *arguments, *flags]) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_everything_at_once(here, capsys):
    features = ["--gene-embeddings", "features.parquet", "--gmt", "go.gmt"]
    found = evaluate(here, *features, "--report", "report.html", "--control-label", "ctrl")
    assert set(found) == {"model", "baselines", "settings"}
    assert {"ridge", "knn", "forest_go", "bilinear", "nearest_cells", "split_half"} <= found["baselines"].keys()
    assert found["model"]["pearson_delta"] > 0.8
    assert found["baselines"]["control_mean"]["pearson_delta"] is None
    assert found["settings"]["test_perturbations"] == 4
    assert found["settings"]["genes"] == 60
    said = capsys.readouterr().out
    assert "20 control cells are left aside" in said
    assert "left out: linear_shift, additive" in said
    assert re.search(r"e_distance, pred: .*: the model is better", said)
    assert re.search(r"control_mean +n/a +n/a +n/a +n/a", said)
    html = (here / "report.html").read_text()
    assert html.count("<img ") == 2
    assert not re.search(r">nan\b|\bNone<|<script|https?://", html)


def test_several_predictions_in_one_table_and_a_picture(here):
    write_prediction(here / "other.h5ad", counts=True, seed=50)
    found = evaluate(here, "--report", "report.png", predicted=("pred.h5ad", "second=other.h5ad"))
    assert set(found["models"]) == {"pred", "second"}
    assert (here / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "ridge" not in found["baselines"]


def test_pseudobulks_of_a_layer(here):
    plain = evaluate(here)["model"]
    lower = evaluate(here, "--means-layer", "expected")["model"]
    assert lower["mse"] > plain["mse"]
    assert lower["e_distance"] == plain["e_distance"], "cells stay what they are"


def test_genes_that_a_prediction_lacks_are_left_out_for_all(here, capsys):
    """Counts are normalised over the genes that are left, as the prediction's are."""
    write_prediction(here / "fewer.h5ad", counts=True, genes=[f"G{n}" for n in range(59, 9, -1)])
    found = evaluate(here, predicted=("fewer.h5ad",))
    assert found["settings"]["genes"] == 50
    assert "10 of 60 genes are left out" in capsys.readouterr().out
    assert abs(found["model"]["e_distance"]) < 0.3 * found["baselines"]["control_mean"]["e_distance"]
    assert found["model"]["mse"] < 0.5 * found["baselines"]["control_mean"]["mse"]


def test_without_a_split_column_the_prediction_decides(here, capsys):
    adata = MADE.adata.copy()
    del adata.obs["split"]
    adata.write_h5ad(here / "unsplit.h5ad")
    split, unsplit = evaluate(here), evaluate(here, real="unsplit.h5ad")
    assert "what was predicted is the test part" in capsys.readouterr().out
    assert unsplit["model"]["pearson_delta_pert"] == split["model"]["pearson_delta_pert"]
    assert unsplit["baselines"]["perturbed_mean"]["mse"] == split["baselines"]["perturbed_mean"]["mse"]


def test_a_cell_type_left_out_with_columns_of_other_names(here):
    made = simulated(num_perturbations=1, num_test=0, cells=25, contexts=("A", "B", "C", "D"))
    adata = made.adata.copy()
    adata.obs["condition"] = adata.obs["perturbation"].astype(str).replace({"ctrl": "rest", "G0": "stimulated"})
    adata.obs = adata.obs[["condition", "context"]]
    adata.write_h5ad(here / "types.h5ad")
    logs = log_normalised(sp.csr_matrix(made.counts("D", "G0", 30, 5))).astype(np.float32)
    obs = pd.DataFrame({"perturbation": ["stimulated"] * 30, "context": ["D"] * 30}, index=[f"p{n}" for n in range(30)])
    anndata.AnnData(logs, obs=obs, var=adata.var.copy()).write_h5ad(here / "type_d.h5ad")
    flags = ["--perturbation-column", "condition", "--context-column", "context", "--control-label", "rest"]
    found = evaluate(here, *flags, real="types.h5ad", predicted=("type_d.h5ad",))
    assert {"linear_shift", "ridge", "knn"} <= found["baselines"].keys()
    assert found["settings"]["training_perturbations"] == 3
    assert found["model"]["discrimination_l1"] is None, "a rank among one"
    assert found["model"]["per_unit"]["pearson_delta"].keys() == {"D: stimulated"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--predicted", "none.h5ad"], "there is no file none.h5ad"),
        (["--predicted", "pred.h5ad", "pred.h5ad"], "--predicted: two files are called 'pred'"),
        (["--predicted", "ridge=pred.h5ad"], "--predicted: two methods are called 'ridge'"),
        (["--control-label", "contrl"], "--control-label"),
        (["--report", "report.pdf"], "report.pdf"),
        (["--gmt", "none.gmt"], "there is no file none.gmt"),
        (["--gene-embeddings", "none.parquet"], "there is no file none.parquet"),
        (["--predicted-layer", "nothing"], "--predicted-layer: pred.h5ad has no layer 'nothing'"),
        (["--num-bootstrap", "0"], "--num-bootstrap is 0"),
    ],
)
def test_users_mistakes(here, capsys, flags, words):
    given = [] if "--predicted" in flags else ["--predicted", "pred.h5ad"]
    assert main(["evaluate", "perturb", "--real", "real.h5ad", *given, *flags, "--json", "no.json"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 3
    assert not (here / "no.json").exists()


def test_genes_of_other_names_and_a_broken_file(here, capsys):
    adata = anndata.read_h5ad(here / "pred.h5ad")
    adata.var_names = [f"ENSG{n:011d}" for n in range(adata.n_vars)]
    adata.write_h5ad(here / "ensembl.h5ad")
    assert main(["evaluate", "perturb", "--real", "real.h5ad", "--predicted", "ensembl.h5ad"]) == 2
    assert "0 genes of 60 in common" in capsys.readouterr().err
    (here / "broken.h5ad").write_bytes(b"no hdf5")
    assert main(["evaluate", "perturb", "--real", "real.h5ad", "--predicted", "broken.h5ad"]) == 2
    assert "broken.h5ad is no h5ad file" in capsys.readouterr().err
