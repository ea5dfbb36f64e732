"""One run of the race of backbones: how many steps fit into a budget of CPU seconds, training, scoring, arithmetic.

Training is the project's own `train`; what it tells its progress bar is listened to, so that the seconds of validation
are told from those of training.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from backbones_cells import HIDING_SEED, MASK_RATIOS, RaceCells
from real_cells import ROOT
from torch.utils.flop_counter import FlopCounterMode

from mdsc.checkpoint import load_checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.loader import CellLoader
from mdsc.data.shards import ShardFolder
from mdsc.evaluation.inpaint import MODEL, ModelPredictor, score_inpainting
from mdsc.training.command import train_to_the_end
from mdsc.training.masked_task import MaskedTask
from mdsc.training.progress import RunProgress
from mdsc.training.sharding import make_accelerator
from mdsc.training.trainer import Trainer

CONFIG = ROOT / "configs" / "benchmark.yaml"
GENES_AT_ONCE = 512
"""Of each training example and validation cell; held-out cells are scored with all genes at once."""
POINTS = 12
"""Validations of a run."""
TRIAL_STEPS = 32
"""Optimiser steps that are timed in each phase, after as many that are not."""
ALONE = "--model.num-layers 0 --train.pathway-steps 0"


@dataclass(frozen=True)
class Contestant:
    """A backbone, with settings that suit it."""

    flags: str
    pathway_share: float = 0.0
    """Share of the budget in which the pathway is trained alone, before the backbone joins in."""


CONTESTANTS = {
    "pooled": Contestant(f"{ALONE} --model.factor-size 0 --train.learning-rate 8e-3"),
    "no transformer": Contestant(f"{ALONE} --train.learning-rate 8e-3"),
    "dit": Contestant("--model.backbone dit --train.learning-rate 3e-3", pathway_share=0.6),
    "latent": Contestant(
        "--model.backbone latent --model.num-latents 32 --model.num-layers 2 --train.learning-rate 3e-3",
        pathway_share=0.6,
    ),
}


def config_of(cells: RaceCells, contestant: Contestant, seed: int, output_dir: Path) -> TrainConfig:
    """Options of a run; its steps are still to be found."""
    flags = ["--config", str(CONFIG), *cells.flags.split(), *contestant.flags.split(), "--data.dir", str(cells.shards)]
    flags += ["--seed", str(seed), "--output-dir", str(output_dir), "--validation.mask-ratios", "0.5"]
    flags += ["--validation.num-cells", "96", "--data.num-genes", str(GENES_AT_ONCE)]
    return parse(TrainConfig, flags)


class Stopwatch(RunProgress):
    """CPU seconds of this process in training steps, without validation and saving, at each validation.

    A line of metrics is written before each validation (`log_every` is `validate_every`), which ends a lap; that a step
    is done with all that belongs to it begins the next one.
    """

    def __init__(self, max_steps: int):
        super().__init__(max_steps, show=False)
        self.cpu_seconds = 0.0
        self.points: list[dict[str, float]] = []
        self._lap: float | None = None
        self._nll: float | None = None

    def measured(self, values: dict[str, float | int]) -> None:
        super().measured(values)
        assert self._lap is not None
        self.cpu_seconds += time.process_time() - self._lap
        self._lap = None

    def validated(self, name: str, score: float) -> None:
        super().validated(name, score)
        self._nll = score

    def done(self, step: int) -> None:
        super().done(step)
        if self._nll is not None:
            self.points.append({"step": step, "cpu_seconds": self.cpu_seconds, "validation_nll": self._nll})
            self._nll = None
        if self._lap is None:
            self._lap = time.process_time()


def trial(config: TrainConfig) -> dict:
    """Seconds and floating-point operations of a step of each phase: {"seconds": [...], "flops": [...]}.

    The phases are the pathway alone and the whole; where the network has no layers there is one, twice.
    """
    seconds = []
    for pathway_steps in (3 * TRIAL_STEPS, 0):
        config = _with_steps(config, 2 * TRIAL_STEPS, pathway_steps, points=2)
        watch = Stopwatch(2 * TRIAL_STEPS)
        train_to_the_end(config, make_accelerator(), watch)
        seconds.append((watch.points[-1]["cpu_seconds"] - watch.points[-2]["cpu_seconds"]) / TRIAL_STEPS)
    return {"seconds": seconds, "flops": [step_flops(config, pathway_only=True), step_flops(config)]}


def step_flops(config: TrainConfig, *, pathway_only: bool = False, steps: int = 2) -> float:
    """What torch counts in a training step of the whole model, forward and backward: matrix products and attention.

    Of small operations and of factorisations it counts none.
    """
    config = _with_steps(config, steps, steps + 1 if pathway_only else 0, points=1)
    checkpoint = load_checkpoint(config.output_dir)
    model = checkpoint.model
    model.set_attn_implementation("eager")  # not all kernels of a CPU are known to the counter
    batch_size = config.train.global_batch_size
    loader = CellLoader(
        ShardFolder.open(config.data.dir),
        checkpoint.tokenizer,
        config.data,
        seed=config.seed,
        global_batch_size=batch_size,
    )
    accelerator = make_accelerator()
    task = MaskedTask(config, accelerator, model, checkpoint.tokenizer, loader.validation_batch(1))
    trainer = Trainer(config, accelerator, model, task, progress=RunProgress(steps, show=False))
    batches = loader.iterate()
    trainer.step(0, next(batches))  # a phase begins with a pass of its own
    with FlopCounterMode(display=False) as counter:
        for step in range(1, 1 + steps):
            trainer.step(step, next(batches))
    batches.close()
    return counter.get_total_flops() / steps


def steps_within(budget: float, share: float, seconds: list[float]) -> tuple[int, int]:
    """(all steps, those of the pathway alone among them) that take `budget` seconds, `share` of it for the pathway."""
    pathway = round(share * budget / seconds[0])
    whole = round((1 - share) * budget / seconds[1])
    number = max(POINTS, (pathway + whole) // POINTS * POINTS)
    return number, min(pathway, number - 1)


def train_and_score(config: TrainConfig, cells: RaceCells, steps: int, pathway_steps: int, most: int) -> dict:
    """{"points": curve, "nll": {mask ratio: ...}, "cpu_seconds", "steps", "pathway_steps", "parameters"}"""
    config = _with_steps(config, steps, pathway_steps, points=POINTS)
    watch = Stopwatch(steps)
    checkpoint = load_checkpoint(train_to_the_end(config, make_accelerator(), watch))
    result = score_inpainting(
        cells.held_out(most),
        checkpoint.tokenizer,
        MASK_RATIOS,
        model=ModelPredictor(lambda *arguments: checkpoint.model(*arguments).logits, checkpoint.tokenizer),
        seed=HIDING_SEED,
    )
    return {
        "points": watch.points,
        "nll": {f"{ratio:g}": result.scores[ratio][MODEL].metrics()["nll"] for ratio in MASK_RATIOS},
        "cpu_seconds": watch.cpu_seconds,
        "steps": steps,
        "pathway_steps": pathway_steps,
        "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
    }


def _with_steps(config: TrainConfig, steps: int, pathway_steps: int, *, points: int) -> TrainConfig:
    every = max(1, steps // points)
    schedule = {"max_steps": steps, "pathway_steps": pathway_steps, "log_every": every, "validate_every": every}
    return replace(config, train=replace(config.train, save_every=steps, keep_last=1, **schedule))


def set_threads() -> None:
    """One, as CPU seconds are compared."""
    torch.set_num_threads(1)
