"""The harness on real perturbed cells; skipped where these files are not beside the repository."""

import json
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from shared_data import ROOT, shared_file

from mdsc.cli import main
from mdsc.data.log_expression import log_normalised
from mdsc.data.gene_set_file import read_gmt, sets_of_genes
from mdsc.evaluation.perturb_scores import score
from mdsc.evaluation.perturb_task import PerturbTask, Prediction, Unit

sys.path.insert(0, str(ROOT / "benchmarks"))
from conditions_kang import CONTROL, STIMULATED, LeftOut, baselines


def test_papalexi_by_the_command(tmp_path, capsys):
    """Five genes left out; cells of other knock-outs stand in for predictions: an alike one is a good one."""
    cells = anndata.read_h5ad(shared_file("papalexi2021_crispr.h5ad"))
    gmt = shared_file("go_biological_process_2021.gmt")
    cells = cells[(cells.obs["guide_top_share"] > 0.8).to_numpy() & (np.arange(cells.n_obs) % 3 == 0)].copy()
    label = cells.obs["perturbation_top"].astype(str)
    stand_in = {"STAT1": "STAT2", "IFNGR1": "JAK2", "CUL3": "ATF2", "SMAD4": "CD86", "IRF1": "IRF7"}
    parts = [cells[(label == name).to_numpy()].X for name in stand_in.values()]
    cells.obs["perturbation"] = label
    cells[~label.isin(["STAT2", "JAK2", "ATF2", "CD86", "IRF7"]).to_numpy()].copy().write_h5ad(tmp_path / "real.h5ad")
    names = np.repeat(list(stand_in), [part.shape[0] for part in parts])
    obs = pd.DataFrame({"perturbation": names}, index=[f"p{row}" for row in range(len(names))])
    logs = log_normalised(sp.vstack(parts, format="csr")).astype(np.float32)
    anndata.AnnData(logs, obs=obs, var=cells.var[[]]).write_h5ad(tmp_path / "pred.h5ad")
    flags = f"--real {tmp_path}/real.h5ad --predicted {tmp_path}/pred.h5ad --control-label non-targeting --gmt {gmt}"
    assert main(["evaluate", "perturb", *flags.split(), "--json", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    alike, mean = (row["per_unit"]["pearson_delta"] for row in (found["model"], found["baselines"]["perturbed_mean"]))
    assert alike["IFNGR1"] > 0.8 > 2 * mean["IFNGR1"], "JAK2 is what the receptor acts through"
    assert max(alike["CUL3"], alike["SMAD4"]) < 0.5, "knock-outs that have nothing to do with one another"
    rows = found["baselines"]
    assert rows["control_mean"]["pearson_delta"] is None
    assert rows["perturbed_mean"]["pearson_delta_pert"] is None
    for name, row in rows.items():
        if name != "split_half":
            assert rows["split_half"]["e_distance"] < row["e_distance"], name
    assert abs(rows["split_half"]["e_distance"]) < 0.1
    assert "forest_go" in capsys.readouterr().out


def test_adamson_pilot_with_one_perturbation_left_out():
    cells = anndata.read_h5ad(shared_file("adamson2016_pilot.h5ad"))
    gene_sets = sets_of_genes(read_gmt(shared_file("go_biological_process_2021.gmt")))
    options = {"perturbation_column": "guide_gene", "control_label": "non-targeting", "gene_sets": gene_sets}
    task = PerturbTask.of_anndata(cells, predicted=[Unit("", "SPI1")], **options)
    assert len(task.training_units) == 4
    assert len(task.rows(task.units[0])) == len(task.controls("")) == 60
    found = score(task, [], num_bootstrap=2)
    assert found.estimate("perturbed_mean", "pearson_delta").mean > 0.3
    assert found.estimate("forest_go", "pearson_delta") is not None
    assert found.estimate("split_half", "discrimination_l1") is None


def test_kang_agrees_with_the_benchmark_of_conditions():
    """One cell type's stimulated cells left out: the same PearsonDelta of the same baselines, by other code."""
    from conditions_kang import kang_cells

    shared_file("kang2018_ifnb.h5ad")
    left = LeftOut.of(kang_cells(), "NK")
    expected = baselines(left)
    whole = anndata.concat([left.training, left.stimulated])
    task = PerturbTask.of_anndata(
        whole,
        perturbation_column="condition",
        control_label=CONTROL,
        context_column="cell_type",
        predicted=[Unit("NK", STIMULATED)],
    )
    wanted = ("control_mean", "perturbed_mean", "linear_shift", "ridge")
    others = task.mean(task.training_units[0], "train")  # any constant will do as a second opinion
    found = score(task, [Prediction("other", {}, {task.units[0]: others})], baselines=wanted, num_bootstrap=2)
    for ours, theirs in {
        "perturbed_mean": "mean change of the other types",
        "linear_shift": "change of all other cells (linear shift)",
    }.items():
        assert found.estimate(ours, "pearson_delta").mean == pytest.approx(expected[theirs], abs=1e-6), ours
    # Ridge chooses its penalty from another grid.
    ridge = expected["ridge on the types' control means"]
    assert found.estimate("ridge", "pearson_delta").mean == pytest.approx(ridge, abs=0.02)
    assert found.estimate("other", "e_distance") is None, "a mean alone has no distance"
