"""`mdsc evaluate inpaint`: from a run folder to table, JSON and picture; the defaults it took; a user's mistakes."""

import json
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from simulated_shards import simulated_counts
from tiny_model import tiny_model
from tiny_run import NUM_GENES, flags, tiny_config

from mdsc.cli import main
from mdsc.data.genes import GeneVocabulary
from mdsc.data.shard_writer import ShardWriter
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.evaluation import inpaint_command
from mdsc.evaluation.cell_sources import read_h5ad, read_shards
from mdsc.model.modeling import MdscModel
from mdsc.sampling.conditions import KnownConditions
from mdsc.sampling.pass_size import PassSize

GENES = [f"G{number}" for number in range(NUM_GENES)]
COUNTS = simulated_counts(260, NUM_GENES, mean=2.0)
TRAIN, TEST = COUNTS[:220], COUNTS[220:]
DRUGS = np.array([f"drug {number % 3}" for number in range(260)], dtype=object)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """runs/a, trained for a few steps on shards with held-out cells, and the same cells as h5ad files."""
    folder = tmp_path_factory.mktemp("evaluate")
    names = np.array([f"cell {number}" for number in range(260)])
    with ShardWriter(folder / "shards", GeneVocabulary.of(GENES), ["drug"]) as writer:
        writer.write("train", TRAIN, {"drug": DRUGS[:220]}, names[:220])
        writer.write("heldout", TEST, {"drug": DRUGS[220:]}, names[220:])
    config = tiny_config(folder, max_steps=4)
    arguments = [*flags(config), "--output-dir", str(folder / "runs" / "a"), "--data.condition-columns", "drug"]
    assert main(["train", *arguments]) == 0
    obs = pd.DataFrame({"drug": DRUGS}, index=names)
    for name, rows in (("train", slice(0, 220)), ("test", slice(220, 260))):
        adata = anndata.AnnData(COUNTS[rows], obs=obs.iloc[rows].copy(), var=pd.DataFrame(index=GENES))
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


def evaluate(folder: Path, *arguments: str) -> dict:
    """The scores, by --json; without the pooled baseline, for which all of a training is set up."""
    output = folder / "scores.json"
    output.unlink(missing_ok=True)
    if "--pooled-steps" not in arguments:
        arguments += ("--pooled-steps", "0")
    assert main(["evaluate", "inpaint", *arguments, "--json", str(output)]) == 0
    return json.loads(output.read_text())


def test_without_arguments_the_newest_run_and_its_shards_are_taken(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    scores = evaluate(folder, "--report", "report.png", "--pooled-steps", "2")
    assert scores["settings"]["checkpoint"] == "runs/a"
    assert (scores["settings"]["cells"], scores["settings"]["training_cells"]) == (40, 220)
    assert scores["model"].keys() == scores["baselines"]["svd"].keys() == {"0.2", "0.5", "0.8"}
    assert "pooled" in scores["baselines"]
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "--checkpoint is not given: taking runs/a" in said
    assert "--input is not given: taking the heldout cells" in said
    assert "--train is not given" in said
    assert "80% hidden: the" in said


def test_published_methods_are_asked_for_by_name(folder, capsys):
    run = str(folder / "runs" / "a")
    arguments = ("--checkpoint", run, "--mask-ratios", "0.5", "--pooled-steps", "0", "--baselines")
    scores = evaluate(folder, *arguments, "alra", "--report", str(folder / "with_points.html"))
    assert scores["settings"]["baselines"] == ["alra"]
    assert scores["baselines"]["alra"]["0.5"]["nll"] is None
    assert scores["baselines"]["alra"]["0.5"]["mae_log1p"] > 0
    assert "alra" in capsys.readouterr().out
    assert main(["evaluate", "inpaint", *arguments, "arla"]) == 2
    assert "--baselines: there is no 'arla'; there are scvi, magic, alra" in capsys.readouterr().err


def test_files_give_the_scores_of_the_shards_whatever_the_order_of_the_genes(folder, capsys):
    """Columns are shuffled, two unknown genes stand among them, and the matrix is CSC."""
    run = str(folder / "runs" / "a")
    from_shards = evaluate(folder, "--checkpoint", run, "--mask-ratios", "0.5")
    order = np.random.default_rng(0).permutation(NUM_GENES + 2)
    padded = sp.hstack([TEST, sp.csr_matrix(np.full((40, 2), 50, dtype=np.int32))], format="csc")[:, order]
    var = pd.DataFrame(index=np.array([*GENES, "NOT-A", "NOT-B"])[order])
    obs = pd.DataFrame({"drug": DRUGS[220:]}, index=[f"c{number}" for number in range(40)])
    anndata.AnnData(padded.tocsc(), obs=obs, var=var).write_h5ad(folder / "shuffled.h5ad")
    inputs = ["--input", str(folder / "shuffled.h5ad"), "--train", str(folder / "train.h5ad")]
    from_files = evaluate(folder, "--checkpoint", run, *inputs, "--mask-ratios", "0.5")
    assert from_files["model"] == from_shards["model"]
    assert from_files["baselines"]["gene_marginal"] == from_shards["baselines"]["gene_marginal"]
    assert from_files["settings"]["genes_not_in_vocabulary"] == 2
    assert "not scored: 2 genes that are not in the model's vocabulary (NOT-" in capsys.readouterr().out
    without = anndata.read_h5ad(folder / "shuffled.h5ad")
    del without.obs["drug"]
    without.write_h5ad(folder / "without.h5ad")
    inputs[1] = str(folder / "without.h5ad")
    unknown = evaluate(folder, "--checkpoint", run, *inputs, "--mask-ratios", "0.5")
    assert unknown["model"]["0.5"]["nll"] != from_shards["model"]["0.5"]["nll"]  # the model was told the drug


def test_genes_that_the_training_cells_lack_are_not_scored(folder, capsys):
    anndata.read_h5ad(folder / "train.h5ad")[:, 8:].write_h5ad(folder / "narrow.h5ad")
    arguments = ["--checkpoint", str(folder / "runs" / "a"), "--train", str(folder / "narrow.h5ad")]
    arguments += ["--report", str(folder / "narrow.html")]
    scores = evaluate(folder, *arguments, "--mask-ratios", "0.5", "--max-cells", "10")
    assert scores["settings"]["genes"] == NUM_GENES - 8
    assert scores["settings"]["cells"] == 10
    assert "not scored: 8 genes that the training cells lack" in capsys.readouterr().out
    html = (folder / "narrow.html").read_text()
    assert html.count("data:image/png;base64,") == 5
    assert len(html) < 2_000_000
    assert not re.search(r"<script|https?://|<link|>nan\b", html)
    for words in ("50% hidden: the", "E&gt;=1 90%", "gene_marginal_depth", "Settings and versions", "weights sha256"):
        assert words in html


def test_passes_are_those_of_sampling(folder, monkeypatch):
    passes, forward = [], MdscModel.forward

    def spy(self, gene_ids, *others, **options):
        passes.append((len(gene_ids), options["genes_per_pass"]))
        return forward(self, gene_ids, *others, **options)

    monkeypatch.setattr(MdscModel, "forward", spy)
    monkeypatch.setattr(inpaint_command, "pass_size", lambda *arguments: PassSize(cells=5, genes=16))
    arguments = ("--mask-ratios", "0.5", "--pooled-steps", "0", "--max-cells", "12")
    evaluate(folder, "--checkpoint", str(folder / "runs" / "a"), *arguments)
    assert passes == [(5, 16), (5, 16), (2, 16)]


def test_without_training_cells_there_are_no_baselines_and_that_is_said(folder, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for path in (folder / "runs" / "a").iterdir():
        if path.is_file() and path.name != "training.yaml":
            (run / path.name).write_bytes(path.read_bytes())
    arguments = ["--checkpoint", str(run), "--mask-ratios", "0.5"]
    assert main(["evaluate", "inpaint", *arguments]) == 2
    assert "give --input" in capsys.readouterr().err
    scores = evaluate(tmp_path, *arguments, "--input", str(folder / "test.h5ad"))
    assert scores["baselines"] == {}
    assert "no baselines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--mask-ratios", "1.5"], "--mask-ratios: 1.5", id="ratio-above-1"),
        pytest.param(["--mask-ratios", "0.5", "0"], "--mask-ratios: 0", id="ratio-of-0"),
        pytest.param(["--mask-ratios", "0.5", "--repeats", "0"], "--repeats is 0", id="no-repeats"),
        pytest.param(["--mask-ratios", "0.5", "--report", "x.pdf"], "--report: x.pdf", id="no-png"),
        pytest.param(["--checkpoint", "nowhere"], "nowhere", id="no-checkpoint"),
        pytest.param(["--input", "nothing.h5ad"], "nothing.h5ad", id="no-input"),
        pytest.param(["--input", "foreign.h5ad"], "no gene in common", id="foreign-genes"),
        pytest.param(["--train", "foreign.h5ad"], "no gene in common", id="foreign-training-genes"),
        pytest.param(["--input", "scaled.h5ad"], "not raw counts", id="no-counts"),
    ],
)
def test_mistakes_give_a_message_and_write_nothing(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    adata = anndata.read_h5ad("test.h5ad")
    adata.var_names = [f"other {name}" for name in adata.var_names]
    adata.write_h5ad("foreign.h5ad")
    adata = anndata.read_h5ad("test.h5ad")
    adata.X = adata.X.log1p()
    adata.write_h5ad("scaled.h5ad")
    before = set(folder.rglob("*"))
    assert main(["evaluate", "inpaint", *arguments, "--json", "out.json"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert set(folder.rglob("*")) == before


def test_an_unknown_evaluation_is_told(capsys):
    assert main(["evaluate", "everything"]) == 2
    assert "`evaluate inpaint`, `evaluate generate`, `evaluate embed`" in capsys.readouterr().err
    assert main(["evaluate", "generat", "--real", "x.h5ad"]) == 2
    assert "perhaps you meant `evaluate generate`" in capsys.readouterr().err
    assert main(["evaluate"]) == 0
    assert "inpaint" in capsys.readouterr().out


def test_cells_are_drawn_from_files_and_shards_alike(folder):
    vocabulary = GeneVocabulary.of(GENES)
    all_cells = read_h5ad(folder / "test.h5ad", vocabulary, conditions=["drug", "dose"], most=100)
    assert (all_cells.counts != TEST).nnz == 0
    assert all_cells.conditions.keys() == {"drug"}
    some = read_h5ad(folder / "test.h5ad", vocabulary, conditions=["drug"], most=12)
    same = read_shards(ShardFolder.open(folder / "shards"), "heldout", vocabulary, conditions=["drug"], most=12)
    assert some.counts.shape == (12, NUM_GENES)
    assert (some.counts != same.counts).nnz == 0
    assert (some.conditions["drug"] == same.conditions["drug"]).all()
    assert same.cells_in_source == 40


def test_levels_are_the_models(folder):
    vocabulary = GeneVocabulary.of(GENES)
    cells = read_h5ad(folder / "test.h5ad", vocabulary, conditions=["drug"], most=3)
    cells.conditions["drug"][:] = ["b", "?", "a"]
    known = KnownConditions(tiny_model(condition_levels={"drug": ["a", "b"], "dose": ["1"]}))
    ids = known.of_labels(cells.conditions).level_ids
    assert ids.keys() == {"drug"}
    assert ids["drug"].tolist() == [2, 0, 1]


def test_shards_without_held_out_cells_are_told(tmp_path):
    with ShardWriter(tmp_path / "shards", GeneVocabulary.of(GENES), []) as writer:
        writer.write("train", TRAIN, {}, [str(number) for number in range(220)])
    with pytest.raises(UserError, match="no held-out cells"):
        _ = ShardFolder.open(tmp_path / "shards").held_out_split
