"""`mdsc evaluate generate`: files of genes in any order, JSON, report, conditions, a user's mistakes."""

import json
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mdsc.cli import main

GENES = [f"G{number}" for number in range(24)]
NUMBERS = {"real": 130, "generated": 100, "train": 120}


def write(path: Path, number: int, seed: int, *, drug_column="drug", genes=GENES) -> None:
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(0).gamma(0.7, 3.0, (2, len(genes)))
    kind = rng.integers(2, size=number)
    obs = pd.DataFrame({drug_column: np.where(kind, "DMSO <i>", "Selinexor")}, index=[f"c{n}" for n in range(number)])
    counts = sp.csr_matrix(rng.poisson(rates[kind]).astype(np.int32))
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    for seed, (name, number) in enumerate(NUMBERS.items()):
        write(folder / f"{name}.h5ad", number, seed)
    return folder


def evaluate(folder: Path, *flags: str, **files: str) -> dict:
    files = {"real": "real.h5ad", "generated": "generated.h5ad", "train": "train.h5ad"} | files
    arguments = [text for name, file in files.items() if file for text in (f"--{name}", str(folder / file))]
    output = folder / "scores.json"
    assert main(["evaluate", "generate", *arguments, *flags, "--json", str(output)]) == 0
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def scores(folder) -> dict:
    return evaluate(folder, "--repeats", "1", "--by", "drug", "--report", str(folder / "report.html"))


def test_json_has_floor_and_baselines_beside_the_generated(scores):
    assert scores["baselines"].keys() == {"training_cells", "negative_binomial", "independent_genes"}
    for row in (scores["model"], scores["floor"], *scores["baselines"].values()):
        assert {"mmd2", "auc_logistic", "auc_boosting", "mean_pearson", "correlation_error", "copies"} <= row.keys()
    assert scores["model"]["auc_boosting"] == pytest.approx(0.5, abs=0.15)
    assert scores["baselines"]["independent_genes"]["mmd2"] > 5 * abs(scores["floor"]["mmd2"])
    assert scores["settings"]["cells_compared"] == 65
    assert scores["by"].keys() == {"DMSO <i>", "Selinexor"}
    assert scores["by"]["Selinexor"]["model"].keys() >= {"mmd2", "mean_error"}


def test_the_report_is_one_small_file_that_runs_nothing_and_escapes_what_users_wrote(scores, folder):
    html = (folder / "report.html").read_text()
    assert len(html) < 2_000_000
    assert "DMSO &lt;i&gt;" in html
    assert "<i>" not in html
    assert not re.findall(r"<script|https?://|<link|@import|url\(", html)
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 3
    assert all('src="data:image/png;base64,' in image and re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert html.count("<h1>") == 1
    assert 'lang="en"' in html
    assert "viewport" in html
    assert not re.search(r">nan\b|\bNone<", html)


def test_genes_are_matched_by_name(folder, scores, capsys):
    """Shuffled, with a gene that the others lack, and one lacking: the same scores on the same genes."""
    adata = anndata.read_h5ad(folder / "generated.h5ad")
    order = np.random.default_rng(1).permutation(len(GENES))
    shuffled = adata[:, order].copy()
    more = sp.hstack([shuffled.X, sp.csr_matrix(np.full((100, 1), 9, dtype=np.int32))], format="csr")
    var = pd.DataFrame(index=[*shuffled.var_names, "NEW"])
    anndata.AnnData(more, obs=adata.obs, var=var).write_h5ad(folder / "shuffled.h5ad")
    found = evaluate(folder, "--repeats", "1", generated="shuffled.h5ad")
    for metric in ("mmd2", "mean_error", "auc_logistic", "depth_ratio"):
        assert found["model"][metric] == pytest.approx(scores["model"][metric], abs=1e-9), metric
    assert "1 of its genes are left out" in capsys.readouterr().out


def test_without_training_cells_a_third_of_the_real_ones_stands_for_them(folder, capsys):
    found = evaluate(folder, "--repeats", "1", train="")
    assert "--train is not given: a third of the real cells" in capsys.readouterr().out
    assert found["settings"]["training_cells"] == 43
    assert found["settings"]["real_cells"] == 87
    assert found["settings"]["train"].startswith("a third of ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["--generated", "few.h5ad"], "--generated has 7 cells", id="few"),
        pytest.param(["--real", "few.h5ad", "--generated", "generated.h5ad"], "few.h5ad has 7 cells", id="few-real"),
        pytest.param(["--generated", "foreign.h5ad"], "no gene in common", id="foreign"),
        pytest.param(["--generated", "scaled.h5ad"], "not raw counts", id="scaled"),
        pytest.param(["--generated", "missing.h5ad"], "missing.h5ad", id="missing"),
        pytest.param(["--generated", "generated.h5ad", "--by", "dose"], "--by: .*no column", id="column"),
        pytest.param(["--generated", "generated.h5ad", "--repeats", "0"], "--repeats is 0", id="repeats"),
        pytest.param(["--generated", "generated.h5ad", "--report", "r.txt"], "does not end in .html", id="report"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(folder, flags, words, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder / "few.h5ad", 7, 5)
    write(folder / "foreign.h5ad", 60, 5, genes=[f"other {name}" for name in GENES])
    scaled = anndata.read_h5ad("generated.h5ad")
    scaled.X = scaled.X.astype(float).log1p()
    scaled.write_h5ad("scaled.h5ad")
    given = [] if "--real" in flags else ["--real", "real.h5ad"]
    assert main(["evaluate", "generate", *given, *flags, "--json", "out.json"]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error
    assert not (folder / "out.json").exists()
