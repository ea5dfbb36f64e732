"""The scripts of data_prep as a user runs them: in a process of their own, with nothing on stderr that is no error."""

import os
import subprocess
import sys

import pytest
from shared_data import ROOT
from tahoe_folder import small_tahoe


def run(folder, script, *args):
    command = [sys.executable, str(ROOT / "data_prep" / script), *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_each_runs_and_tells_of_mistakes(tmp_path):
    done = run(tmp_path, "demo.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "580 train, 120 heldout" in done.stdout
    done = run(tmp_path, "h5ad.py", "data/demo/pbmc700.h5ad", "--output-dir", "s", "--condition-columns", "drug")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data/demo/pbmc700.h5ad has no column 'drug' in obs (--condition-columns)")
    assert done.stderr.count("\n") <= 2
    done = run(tmp_path, "tahoe.py", "--source", "nowhere", "--output-dir", "s")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --source nowhere: there is no such folder")
    small_tahoe(tmp_path / "published")
    options = ["--heldout-by", "drug", "DMSO_TF", "Infigratinib", "--heldout-by", "plate", "plate2"]
    done = run(tmp_path, "tahoe.py", "--source", "published", "--output-dir", "s", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "conditions: drug, cell_line, plate, dose\n3 of the 3 files of published\n" in done.stdout
    done = run(tmp_path, "simulate.py", "--output-dir", "sim", "--num-cells", "50")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_perturbations_from_a_simulation_to_a_task(tmp_path):
    size = ["--num-perturbations", "12", "--num-cells", "600", "--num-genes", "60", "--median-depth", "800"]
    done = run(tmp_path, "simulate_perturbations.py", "--output", "sim.h5ad", *size)
    assert (done.returncode, done.stderr) == (0, "")
    vectors = ["sim_embeddings.parquet", "--output", "genes.parquet", "--for", "sim.h5ad"]
    done = run(tmp_path, "gene_embeddings.py", *vectors)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 of 60 genes have an embedding" in done.stdout
    done = run(
        tmp_path, "adamson.py", "sim.h5ad", "--output-dir", "task", "--gene-embeddings", "genes.parquet", "--num-genes",
        "40",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "task: 600 cells x 40 genes, gears-simulation, seed 1" in done.stdout
    done = run(tmp_path, "adamson.py", "sim.h5ad", "--output-dir", "task", "--control-label", "control")
    assert done.returncode == 2
    assert done.stderr.startswith("error: sim.h5ad has no cells of --control-label 'control'")
