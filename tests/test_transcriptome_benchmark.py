"""The benchmark over a whole transcriptome: tables of unequal runs, and expected counts as they are scored."""

import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.evidence import hide
from mdsc.evaluation.inpaint import HeldOutCells, ModelPredictor, score_inpainting

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from transcriptome_steps import by_predictor, expected_counts
from transcriptome_tables import METRICS, all_tables


def metrics(value, law=True):
    known = {"spearman_nonzero", "mae_log1p", "mae_log1p_median"}
    return {metric: value if law or metric in known else None for metric in METRICS}


RUNS = [
    {"seed": 0, "method": "ours", "scores": {"model": metrics(0.1)}, "impute": {"model": 4.0}, "peak_gib": 1.0}
    | {"train": {"seconds": 10.0, "peak_gib": 1.5}},
    {"seed": 1, "method": "ours", "scores": {"model": metrics(0.3)}, "impute": {"model": 6.0}, "peak_gib": 1.0}
    | {"train": {"seconds": 20.0, "peak_gib": 1.2}},
    {"seed": 0, "method": "plain", "fit": {}, "impute": {}, "scores": {"knn": metrics(0.15)}, "peak_gib": 2.0},
    {"seed": 0, "method": "magic", "fit": {"magic": 7.0}, "impute": {}, "scores": {"magic": metrics(0.9, law=False)}}
    | {"peak_gib": 3.0},
]


def test_tables_of_runs_with_unequal_seeds_and_rows_without_a_law():
    scores, differences, costs = all_tables(RUNS, {"train": 8, "test": 2, "genes": 30})
    by_name = {row[0]: row[1:] for row in scores.rows}
    assert list(by_name) == ["knn", "ours", "magic"]  # by nll, no law last
    assert by_name["ours"][0] == "0.2000 ± 0.1414"
    assert by_name["ours"][-1] == "2"
    assert by_name["knn"][0] == "**0.1500**"
    assert by_name["magic"][0] == "n/a"
    assert by_name["magic"][1] == "**0.9000**"  # the higher the better
    paired = {row[0]: row[1:] for row in differences.rows}
    assert paired["ours - knn"][0] == "-0.0500"  # of seed 0 alone
    assert paired["ours - magic"][0] == "n/a"
    assert {row[0]: row[1:] for row in costs.rows}["ours"] == ["15", "5", "20", "1.50"]
    assert {row[0]: row[1:] for row in costs.rows}["magic"] == ["7", "0", "7", "3.00"]


def test_expected_counts_are_those_that_are_scored():
    counts = np.random.default_rng(0).poisson(2.0, (9, 40)).astype(np.int32)
    tokenizer = make_tokenizer("count", 16)

    def predict(gene_ids, tokens, counts, *others):
        return -torch.arange(16.0) * (1 + gene_ids[..., None] / 30 + counts.sum(1)[:, None, None] / 100)

    model, cells = ModelPredictor(predict, tokenizer), HeldOutCells(sp.csr_matrix(counts), np.arange(40))
    result = score_inpainting(cells, tokenizer, (0.8,), model=model)
    [batch] = cells.batches(tokenizer)
    from mdsc.diffusion.corruption import hide_fraction

    hidden = hide_fraction(batch.is_pad, 0.8, seed=0, cell_index=batch.cell_index)
    said = expected_counts(model, hide(batch, hidden), tokenizer)
    error = np.abs(np.log1p(said) - np.log1p(counts))[hidden.numpy()].mean()
    assert abs(by_predictor(result)["model"]["mae_log1p"] - error) < 1e-5
