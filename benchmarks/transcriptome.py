"""A whole transcriptome: all 16,634 genes of pbmc3k, filled in by models that were trained on 1,024 at once.

    python benchmarks/transcriptome.py --markdown results.md

80% of each held-out cell's genes are hidden. Beside the models: the plain baselines, scVI, MAGIC and ALRA on the same
visible counts (pip install 'mdsc[baselines]'). Each step is a process of its own with one thread; what is done stays,
so that the benchmark can be stopped and started again. Reads `shared/data/pbmc3k.h5ad` beside the repository.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from finished_steps import once
from real_cells import ROOT, prepare_split, shared_file
from result_tables import write_markdown
from transcriptome_tables import all_tables

from mdsc.atomic import replacing
from mdsc.checkpoint import WEIGHTS, weights_digest
from mdsc.cli import exit_with
from mdsc.errors import UserError

SHORT = "--train.pathway-steps 2600 --train.learning-rate 3e-3 --train.pathway-learning-rate 8e-3"
MODELS = {
    "no transformer": "",
    "dit": f"--model.num-layers 1 --model.mlp-ratio 2 {SHORT}",
    "latent": f"--model.backbone latent --model.num-layers 2 {SHORT}",
}
"""Name -> flags beside configs/laptop.yaml."""
PUBLISHED = ("scvi", "scvi_masked", "magic", "alra")


@dataclass(frozen=True, kw_only=True)
class TranscriptomeConfig:
    data: str = "pbmc3k"
    """A file of shared/data, without .h5ad."""
    models: tuple[str, ...] = tuple(MODELS)
    """no transformer, dit, latent; the first is the tokenizer's owner and the one that time is compared for."""
    rivals: tuple[str, ...] = ("plain", *PUBLISHED)
    """plain (all plain baselines), scvi, scvi_masked, magic, alra."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training, scVI's too, and of what is hidden. The split into training and test cells stays."""
    work_dir: Path = Path("runs/transcriptome")
    """Folder for cells, runs and scores."""
    json: Path | None = None
    """File for the scores of all runs."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(TranscriptomeConfig, args=list(argv), description=__doc__)
    if unknown := [name for name in config.models if name not in MODELS]:
        raise UserError(f"--models: there is no {unknown[0]!r}; there are {', '.join(MODELS)}.")
    source = shared_file(f"{config.data}.h5ad")
    if source is None:
        raise UserError(f"--data: there is no shared/data/{config.data}.h5ad beside the repository.")
    folder = config.work_dir.resolve() / config.data
    folder.mkdir(parents=True, exist_ok=True)
    note = {"source": config.data, "bytes": source.stat().st_size, "genes": "detected"}
    size = once(folder / "split.json", note, lambda: prepare_split(source, folder, None))["result"]

    runs = []
    for seed in config.seeds:
        for name in config.models:
            print(f"seed {seed}: {name}", flush=True)
            runs.append({"seed": seed, "method": name} | trained_and_scored(folder, name, seed))
        tokens_of = model_dir(folder, config.models[0], seed)
        for method in config.rivals:
            print(f"seed {seed}: {method}", flush=True)
            runs.append({"seed": seed, "method": method} | scored(folder, method, tokens_of, seed))
    tables = all_tables(runs, size)
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps({"size": size, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        introduction = (
            f"{config.data}, all genes that any cell has; 20% of the cells held out, 80% of the genes of each hidden; "
            "`count` tokens. Models see 1,024 genes of a cell at once in training, and all of them here, but for the "
            "attention of `dit`, which gets random blocks of 1,024."
        )
        write_markdown(config.markdown, "A whole transcriptome", introduction, tables)


def model_dir(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '-')}-seed{seed}"


def trained_and_scored(folder: Path, name: str, seed: int) -> dict:
    """`scored` of a model that is trained before, and "train": {"seconds", "peak_gib"} of that."""
    run = model_dir(folder, name, seed)
    command = ["train.py", "--config", str(ROOT / "configs" / "laptop.yaml"), "--data.dir", str(folder / "shards")]
    command += ["--output-dir", str(run), "--seed", str(seed), "--tokenizer.name", "count", *MODELS[name].split()]
    if not (run / WEIGHTS).is_file():
        (run / "trained.json").unlink(missing_ok=True)
    trained = once(run / "trained.json", {"command": command}, lambda: measured(command))["result"]
    return {"train": trained} | scored(folder, "model", run, seed)


def scored(folder: Path, method: str, checkpoint: Path, seed: int) -> dict:
    """{"scores": {predictor: metrics}, "fit", "impute": CPU seconds by predictor, "peak_gib"}"""
    name = f"{checkpoint.name}-scores.json" if method == "model" else f"{method}-seed{seed}-scores.json"
    out = folder / name
    command = ["benchmarks/transcriptome_steps.py", "--method", method, "--folder", str(folder)]
    command += ["--checkpoint", str(checkpoint), "--seed", str(seed), "--json", str(out)]
    # Baselines know of the model nothing but its tokenizer, which is the same for all that were trained with this seed.
    settings = {"command": command, "weights": weights_digest(checkpoint) if method == "model" else None}
    once(out.with_suffix(".done"), settings, lambda: measured(command))
    return json.loads(out.read_text(encoding="utf-8"))


def measured(command: list[str]) -> dict[str, float]:
    """Run one of the project's scripts with one thread: CPU seconds and peak memory of the process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=ROOT, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{command[0]} ended with exit code {process.returncode}; see above. What was done stays.")
    return {"seconds": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss / 2**20}


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
