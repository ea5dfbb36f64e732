"""The documents tell the truth: their commands run as they stand, and what they name is there."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mdsc.cli import main
from mdsc.prep.simulate import simulate_h5ad
from mdsc.prep.simulated_cells import SimulationConfig, Truth

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Added to each command that has the word, so that minutes become seconds. All else runs as it is written.
SHORTENED = {
    "train.py": "--train.max-steps 2 --train.pathway-steps 1 --train.global-batch-size 16 --train.batch-size None "
    "--data.num-lanes 4 --model.num-layers 1 --model.hidden-size 24 --model.state-size 4 --validation.num-cells 8",
    "sample.py": "--num-steps 2",
    "evaluate.py": "--pooled-steps 2 --max-cells 20",
}
# Files that the commands write or that a user brings, and so are not in the repository.
NOT_OURS = re.compile(
    r"(runs|shards|adamson|data/demo|\.venv)/|^(scores\.json|report\.(png|html)|\w+\.h5ad)$|^config\.json$|^shared/"
    r"|(^|_)(features|embeddings)\.parquet$|^task\.json$|^test_genes\.txt$"
    r"|^train-\d+-of-|_metadata\.parquet$"  # Tahoe's
)
ACCELERATE = {
    *("--config_file", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"),
    "--main_process_port",
}
CHECKPOINT = {
    *("model.safetensors", "genes.parquet", "tokenizer.json", "training.yaml", "quarantined.json", "state.json"),
    *("loss.png", "run.json"),
}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.M | re.S)


def commands() -> list[str]:
    return [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder that looks like the repository, with a user's cells.h5ad in it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "sample.py", "evaluate.py", "data_prep", "configs"):
        (folder / name).symlink_to(ROOT / name)
    truth = Truth.of(SimulationConfig(num_cells=200, num_genes=40, genes_per_drug=5))
    simulate_h5ad(truth, folder / "cells.h5ad")
    return folder


def run(clone: Path, command: list[str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom(clone: Path):
    ours = [command for command in commands() if not command.startswith("make ")]
    assert len(ours) >= 8
    for command in ours:
        extra = [flags for word, flags in SHORTENED.items() if word in command.split()]
        run(clone, ["bash", "-euc", " ".join([command, *extra])])
    python = blocks(ROOT / "README.md", "python")
    assert python
    for block in python:
        run(clone, [sys.executable, "-c", block])
    for name in ("filled.h5ad", "generated.h5ad", "scores.json", "report.png", "runs/mine/training.yaml"):
        assert (clone / name).is_file(), name


def test_each_rule_of_shortening_fits_a_command():
    words = {word for command in commands() for word in command.split()}
    assert SHORTENED.keys() <= words


def test_every_make_target_is_there():
    named = {
        target
        for path in DOCUMENTS
        for target in re.findall(r"\bmake (demo|test|lint|format|clean\S*)", path.read_text())
    }
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(path: Path):
    text = path.read_text()
    words = {word.strip("`,.;:()") for word in text.replace("](", " ").split()}
    named = {
        word for word in words if re.fullmatch(r"[\w./-]+\.(py|md|ya?ml|toml|txt|json|png|h5ad|parquet)|(\w+/)+", word)
    }
    lacking = []
    for word in named - CHECKPOINT:
        places = [ROOT, path.parent, ROOT / "data_prep", *{ROOT / Path(other).parent for other in named}]
        if not NOT_OURS.search(word) and not any((place / word).exists() for place in places):
            lacking.append(word)
    assert not lacking


@pytest.fixture(scope="module")
def help_text() -> str:
    """What --help of every command says, as a user would see it."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        for command in (
            "train",
            "sample",
            "evaluate inpaint",
            "evaluate generate",
            "evaluate embed",
            "validate",
            "prepare h5ad",
            "prepare tahoe",
            "prepare demo",
            "prepare mixture",
            "prepare features",
            "verify",
            "shards-to-h5ad",
            "push",
            "likelihood",
            "embed",
            "prepare perturbation",
            "prepare gene-embeddings",
            "prepare simulate-perturbations",
            "evaluate perturb",
        ):
            main([*command.split(), "--help"])
    benchmarks = [
        subprocess.run(
            [sys.executable, ROOT / "benchmarks" / name, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for name in (
            "inpaint.py",
            "calibration.py",
            "ablations.py",
            "prepare.py",
            "loader.py",
            "train_step.py",
            "backbones.py",
            "conditions.py",
            "transcriptome.py",
            "kill_resume.py",
            "gene_blocks.py",
            "mean_floor.py",
            "stream.py",
            "gpu.py",
            "sampling.py",
            "likelihood.py",
            "embedding.py",
            "gaussian_samplers.py",
            "perturbation.py",
            "perturbation_faults.py",
            "adamson.py",
            "all_genes.py",
        )
    ]
    return text.getvalue() + "".join(benchmarks)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_that_is_named_is_there(path: Path, help_text: str):
    known = set(re.findall(r"--[\w.-]+", help_text)) | {"--help", "--version"} | ACCELERATE | {"--ntasks-per-node"}
    assert len(known) > 50
    assert not set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", path.read_text())) - known


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
