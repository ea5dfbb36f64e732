"""Embeddings of which the scores are known: separated labels, none at all, mixed and parted batches; the command."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mdsc.cli import main
from mdsc.evaluation.embedding_scores import batch_mixing, difference, folds_of, score_embedding, vote

CELLS = 150
LABELS = np.arange(CELLS) % 3


def separated(spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return 4 * np.eye(3)[LABELS] + spread * rng.normal(size=(CELLS, 3))


def test_votes_by_hand_and_ties_go_to_the_nearest():
    train, labels = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 1, 0])
    assert vote(train, labels, np.array([[0.1], [1.9]]), 3).tolist() == [1, 1]
    assert vote(train, labels, np.array([[0.1], [1.4]]), 2).tolist() == [0, 1]
    assert vote(train, labels, np.array([[0.1], [2.8]]), 99).tolist() == [0, 0]  # all vote: two each


def test_separated_labels_are_found_and_permuted_ones_are_at_chance():
    points, folds = separated(), folds_of(LABELS, None, 0)
    found = score_embedding(points, LABELS, folds)
    for metric in ("accuracy", "macro_f1", "ari", "nmi"):
        assert found.metrics[metric] > 0.8, metric  # a start of k-means may go wrong
    assert found.metrics["accuracy"] == 1
    assert found.metrics["silhouette"] > 0.7
    permuted = np.random.default_rng(1).permutation(LABELS)
    lost = score_embedding(points, permuted, folds)
    assert lost.metrics["accuracy"] == pytest.approx(1 / 3, abs=4 * lost.standard_error["accuracy"])
    assert abs(lost.metrics["ari"]) < 0.05
    gap, error = difference(found, lost)
    assert gap == pytest.approx(1 - lost.metrics["accuracy"])
    assert 0 < error < 0.06


def test_all_cells_are_scored_once_by_cells_of_other_folds():
    folds = folds_of(LABELS, None, 0)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(CELLS))
    for train, test in folds:
        assert not set(train) & set(test)
    # A cell that is its own neighbour would be right by itself.
    alone = np.random.default_rng(2).normal(size=(CELLS, 2))
    assert score_embedding(alone, LABELS, folds, num_neighbours=1).metrics["accuracy"] < 0.5


def test_a_split_scores_the_other_cells_and_fits_on_training_cells_alone():
    is_train, seen = np.arange(CELLS) < 90, []

    def fitted(rows):
        seen.append(rows)
        return separated()

    found = score_embedding(fitted, LABELS, folds_of(LABELS, is_train, 0))
    assert len(found.right) == 60
    assert all((rows == np.arange(90)).all() for rows in seen)


def test_mixed_batches_are_at_one_and_parted_ones_at_zero():
    rng, some = np.random.default_rng(3), np.arange(CELLS)
    batches = rng.integers(2, size=CELLS)
    mixed = batch_mixing(separated(), LABELS, batches, 15, some)
    assert mixed["batch_entropy"] == pytest.approx(1, abs=0.05)
    assert mixed["batch_silhouette"] == pytest.approx(0, abs=0.05)
    parted = batch_mixing(separated() + 50 * batches[:, None], LABELS, batches, 15, some)
    assert parted["batch_entropy"] == pytest.approx(0, abs=0.05)
    assert parted["batch_silhouette"] > 0.9
    assert np.isnan(batch_mixing(separated(), LABELS, np.zeros(CELLS, dtype=int), 15, some)["batch_entropy"])


def test_constant_embeddings_have_scores_and_no_nan_but_where_one_is_due():
    found = score_embedding(separated(spread=0.0), LABELS, folds_of(LABELS, None, 0))
    assert found.metrics["accuracy"] == 1
    assert found.metrics["silhouette"] == pytest.approx(1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    """Counts that tell the labels, embeddings that do and do not; a cell without a label, a rare one."""
    folder = tmp_path_factory.mktemp("embed")
    rng = np.random.default_rng(4)
    rates = rng.gamma(1.0, 3.0, (3, 30))
    counts = sp.csr_matrix(rng.poisson(rates[LABELS]).astype(np.float32))
    kinds = np.array(["T <b>cell</b>", "B cell", "NK"], dtype=object)[LABELS]
    kinds[0], kinds[1] = np.nan, "[/rare]"  # no markup of the console's
    obs = pd.DataFrame(
        {
            "kind": kinds,
            "donor": [f"d{n % 2}" for n in range(CELLS)],
            "one": "same",
            "split": np.where(np.arange(CELLS) < 100, "train", "test"),
            "lab": [None if n in (0, 5, 9) else f"lab {n % 2}" for n in range(CELLS)],
        },
        index=[f"c{n}" for n in range(CELLS)],
    )
    adata = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{n}" for n in range(30)]))
    adata.obsm["X_mdsc"], adata.obsm["X_noise"] = separated(), rng.normal(size=(CELLS, 4))
    adata.obsm["X_nan"] = np.full((CELLS, 2), np.nan)
    adata.write_h5ad(folder / "cells.h5ad")
    return folder


def evaluate(folder: Path, *flags: str) -> dict:
    assert (
        main(
            [
                "evaluate",
                "embed",
                "--input",
                str(folder / "cells.h5ad"),
                "--label",
                "kind",
                *flags,
                "--json",
                str(folder / "scores.json"),
            ]
        )
        == 0
    )
    return json.loads((folder / "scores.json").read_text())


def test_the_command_scores_beside_pca_and_writes_a_report(embedded, capsys):
    scores = evaluate(embedded, "--batch", "donor", "--report", str(embedded / "report.html"))
    said = capsys.readouterr().out
    assert "2 cells are left out: without a label, or of one that fewer than 5 have; of few cells: [/rare]" in said
    assert scores["model"]["accuracy"] == 1
    assert scores["baselines"].keys() == {"pca_50", "pca_10", "depth", "permuted_labels"}
    assert scores["baselines"]["permuted_labels"]["accuracy"] < 0.5 < scores["baselines"]["pca_50"]["accuracy"]
    assert scores["model"]["batch_entropy"] == pytest.approx(1, abs=0.1)
    assert scores["comparison"]["pca_50"]["accuracy_difference"] >= 0
    assert "level with pca_50 of the counts or better" in said
    html = (embedded / "report.html").read_text()
    assert "T &lt;b&gt;cell&lt;/b&gt;" in html
    assert "<b>cell" not in html


def test_an_embedding_that_knows_less_than_pca_is_said_to(embedded, capsys):
    scores = evaluate(embedded, "--key", "X_noise", "--train-split", "split")
    assert "pca_10 of the counts is BETTER than X_noise" in capsys.readouterr().out
    assert scores["comparison"]["pca_50"]["accuracy_difference"] < -0.3
    assert "batch_entropy" not in scores["model"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["--label", "kinds"], "--label: .*perhaps you meant kind", id="label"),
        pytest.param(["--label", "one"], "--label has one value alone", id="one-label"),
        pytest.param(["--label", "kind", "--key", "X_pca"], "it has X_mdsc, X_nan, X_noise", id="key"),
        pytest.param(["--label", "kind", "--key", "X_nan"], "not finite", id="nan"),
        pytest.param(["--label", "kind", "--batch", "laboratory"], "--batch: .*no column", id="batch"),
        pytest.param(["--label", "kind", "--batch", "lab"], "--batch: .*'lab'.* no value in 2 cells", id="batch-nan"),
        pytest.param(["--label", "kind", "--train-split", "lab"], "--train-split: .* in 2 cells", id="split-nan"),
        pytest.param(["--label", "kind", "--train-split", "donor"], "--train-split: no cell has 'train'", id="split"),
        pytest.param(["--label", "kind", "--num-neighbours", "0"], "--num-neighbours is 0", id="neighbours"),
        pytest.param(["--label", "kind", "--report", "r.png"], "does not end in .html", id="report"),
        pytest.param(["--label", "kind", "--input", "none.h5ad"], "none.h5ad", id="file"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(embedded, flags, words, capsys, monkeypatch):
    import re

    monkeypatch.chdir(embedded)
    given = [] if "--input" in flags else ["--input", "cells.h5ad"]
    assert main(["evaluate", "embed", *given, *flags, "--json", "out.json"]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error
    assert not (embedded / "out.json").exists()
