"""What each part of the model is worth: configs/tiny.yaml with parts changed, on the embedded cells, several seeds.

    python benchmarks/ablations.py --markdown docs/results/ablations.md

The held-out cells are scored, with the same positions hidden in all. Parts beside the transformer are compared without
it, which takes a minute a run. What is done already stays, so that this can be
stopped and started again.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import tyro
from finished_steps import once
from result_tables import ResultTable, mean_and_sd, write_markdown

from mdsc.atomic import replacing
from mdsc.checkpoint import load_checkpoint
from mdsc.cli import exit_with
from mdsc.config.schema import TrainConfig
from mdsc.config.shipped import shipped_config
from mdsc.config.yaml_flags import parse
from mdsc.data.manifest import FILE_NAME
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.evaluation.cell_sources import read_shards
from mdsc.evaluation.inpaint import MODEL, HeldOutCells, ModelPredictor, score_inpainting
from mdsc.sampling.conditions import KnownConditions
from mdsc.training.command import train_to_the_end
from mdsc.training.progress import RunProgress
from mdsc.training.sharding import make_accelerator

MASK_RATIOS = (0.2, 0.5, 0.8)
REPEATS = 4
"""Times that each held-out cell is hidden and scored."""
FULL = "full"
# What goes before attention is trained alone, at the rate that suits it, for all steps.
ALONE = "--model.num-layers 0 --train.learning-rate 4e-3 --train.pathway-steps 0"
ABLATIONS = {
    FULL: "",
    "no transformer": ALONE,
    "no transformer, own noise": f"{ALONE} --model.no-cross-fit",
    "no transformer, no evidence": f"{ALONE} --model.factor-size 0",
    "no transformer, no evidence, weak decay": f"{ALONE} --model.factor-size 0 --train.gene-weight-decay 0.3",
    "no transformer, weak decay": f"{ALONE} --train.gene-weight-decay 0.3",
    "no transformer, mean pooling": f"{ALONE} --model.state-pooling mean",
    "no transformer, random start": f"{ALONE} --model.gene-init random",
    "no transformer, no state dropout": f"{ALONE} --model.state-dropout 0",
    "no transformer, no ordinal term": f"{ALONE} --objective.ordinal none",
    "no transformer, crps": f"{ALONE} --objective.ordinal crps",
    "no transformer, half of the genes": f"{ALONE} --data.num-genes 384",
    "no transformer, continuous time": f"{ALONE} --objective.form continuous",
}
"""Flags of each variant."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    only: tuple[str, ...] = ()
    """Names of variants; by default all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training; what is hidden of the held-out cells is the same for all."""
    steps: int | None = None
    """Optimiser steps instead of the config's; the steps of the pathway alone change in proportion."""
    config: Path = field(default_factory=lambda: shipped_config("tiny"))
    """Options of the full model."""
    work_dir: Path = Path("runs/ablations")
    """Folder for runs and scores."""
    json: Path | None = None
    """File for the scores of all runs."""
    markdown: Path | None = None
    """File for the table."""


def main(argv: Sequence[str]) -> None:
    options = tyro.cli(AblationConfig, args=argv, description=__doc__)
    if unknown := [name for name in options.only if name not in ABLATIONS]:
        raise UserError(f"--only: there is no {unknown[0]!r}; there are {', '.join(map(repr, ABLATIONS))}.")
    names = [name for name in ABLATIONS if not options.only or name in options.only]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for seed in options.seeds:  # all variants of a seed first: a benchmark that is stopped has compared something
        for name in names:
            config = variant(options, name, seed)
            _prepare(Path(config.data.dir))
            note = Path(f"{config.output_dir}.json")
            cells = hashlib.sha256((Path(config.data.dir) / FILE_NAME).read_bytes()).hexdigest()
            print(f"{name}, seed {seed}", flush=True)
            done = once(note, {"config": asdict(config), "cells": cells}, lambda: train_and_score(config))  # noqa: B023
            runs[name].append({"seed": seed, "seconds": done["seconds"], "nll": done["result"]["nll"]})
            print(f"  {done['seconds']:.0f} s, nll {done['result']['nll']}", flush=True)
    table = ablation_table(runs)
    table.show()
    _write(options, runs, table)


def variant(options: AblationConfig, name: str, seed: int) -> TrainConfig:
    folder = options.work_dir / f"{name.replace(', ', '-').replace(' ', '_')}-seed{seed}"
    flags = ["--config", str(options.config), *ABLATIONS[name].split()]
    config = parse(TrainConfig, [*flags, "--seed", str(seed), "--output-dir", str(folder)])
    steps = options.steps or config.train.max_steps
    pathway_steps = round(config.train.pathway_steps * steps / config.train.max_steps)
    return replace(config, train=replace(config.train, max_steps=steps, pathway_steps=pathway_steps))


def train_and_score(config: TrainConfig) -> dict:
    """{"nll": {mask ratio: nats per hidden gene of the held-out cells}}"""
    checkpoint = load_checkpoint(train_to_the_end(config, make_accelerator(), RunProgress(config.train.max_steps)))
    folder = ShardFolder.open(config.data.dir)
    levels = checkpoint.model.config.condition_levels or {}
    cells = read_shards(
        folder, folder.held_out_split, checkpoint.vocabulary, conditions=tuple(levels), most=sys.maxsize
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = checkpoint.model.to(device)
    result = score_inpainting(
        HeldOutCells(cells.counts, cells.places, KnownConditions(checkpoint.model).of_labels(cells.conditions)),
        checkpoint.tokenizer,
        MASK_RATIOS,
        model=ModelPredictor(lambda *arguments: model(*arguments).logits, checkpoint.tokenizer, device),
        repeats=REPEATS,
    )
    return {"nll": {f"{ratio:g}": result.scores[ratio][MODEL].metrics()["nll"] for ratio in MASK_RATIOS}}


def ablation_table(runs: dict[str, list[dict]]) -> ResultTable:
    ratios = [f"{ratio:g}" for ratio in MASK_RATIOS]
    full = {run["seed"]: run["nll"] for run in runs.get(FULL, [])}
    rows = []
    for name, of_name in runs.items():
        nll = [mean_and_sd([run["nll"][ratio] for run in of_name]) for ratio in ratios]
        more = [
            ""
            if name == FULL or not full
            else mean_and_sd([r["nll"][ratio] - full[r["seed"]][ratio] for r in of_name], signed=True)
            for ratio in ratios
        ]
        seconds = sum(run["seconds"] for run in of_name) / len(of_name)
        rows.append([name, *nll, *more, f"{seconds:.0f}"])
    columns = ["variant", *(f"nll at {r}" for r in ratios), *(f"- full at {r}" for r in ratios), "seconds"]
    seeds = ", ".join(str(run["seed"]) for run in next(iter(runs.values())))
    note = (
        f"Seeds {seeds}: mean ± standard deviation, differences paired by seed. Nats per hidden gene of the held-out "
        "cells, by the share of hidden genes; seconds: of training and scoring one seed."
    )
    return ResultTable("Parts changed", columns, rows, note)


def _prepare(shards: Path) -> None:
    if not shards.exists():
        from mdsc.prep.demo import DemoConfig, prepare_demo

        print(f"{shards} is not there: preparing the embedded cells")
        prepare_demo(DemoConfig(output_dir=shards.parent))


def _write(options: AblationConfig, runs: dict[str, list[dict]], table: ResultTable) -> None:
    import json

    if options.json is not None:
        with replacing(options.json) as beside:
            beside.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    if options.markdown is not None:
        introduction = "The embedded 700 blood cells (580 to train on, 120 held out), configs/tiny.yaml."
        flags = [f"- {name}: `{given}`" for name, given in ABLATIONS.items() if name in runs and given]
        text = "\n".join([introduction, "", "Flags of the variants:", "", *flags])
        write_markdown(options.markdown, "Ablations", text, [table])


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
