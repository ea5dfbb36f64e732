"""Both ways of the Gaussian head on simulated perturbations: trained, asked for unseen ones, scored by the harness."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conditions_simulated import train
from perturbation_fault_figures import noise_errors, own_axes
from perturbation_methods import prepared, to_json
from perturbation_tasks import Fold
from real_cells import ROOT

import mdsc
from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.data.shards import ShardFolder
from mdsc.evaluation.perturb_scores import score
from mdsc.evaluation.perturb_task import PerturbTask, Prediction
from mdsc.perturbation.generation import DrawOptions, draw_latents
from mdsc.perturbation.paired_batches import LatentCells
from mdsc.perturbation.perturbed_cells import read_perturbed
from mdsc.prep.perturbation_task import perturbation_task
from mdsc.prep.perturbation_truth import PerturbationSimulation, random_embeddings
from mdsc.prep.simulated_perturbations import simulate_perturbations
from mdsc.sampling.predicted_cells import chosen_rows

PARENT, OURS = "adamson_parent", "adamson_pca"
"""In configs/."""
BASELINES = ("control_mean", "perturbed_mean", "ridge", "nearest_cells")
ORACLE = "oracle"
PAIRS = ", opposite pairs"


def simulated(simulation: PerturbationSimulation, cells_each: int) -> tuple[Fold, Prediction]:
    """The cells with GEARS' split of the perturbations, and what who knows all that embeddings tell predicts."""
    embeddings = random_embeddings(simulation)
    cells, oracle = simulate_perturbations(simulation, embeddings, oracle_cells=cells_each)
    task = perturbation_task(cells, embeddings, say=lambda text: None, split_seed=1 + simulation.seed)
    fold = Fold(f"simulated {simulation.seed}", task, embeddings, batch="batch")
    return fold, replace(Prediction.of_anndata(oracle, fold.task()), name=ORACLE)


def trained(name: str, fold: Fold, folder: Path, seed: int, more: list[str]) -> tuple[Checkpoint, float]:
    """By a file of configs/; the seconds it took."""
    shards = prepared(fold, folder)
    flags = ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--data.dir", str(shards), "--seed", str(seed)]
    flags += ["--data.condition-features", f"{COLUMN}={folder / 'features.parquet'}"]
    flags += ["--output-dir", str(folder / name), "--train.validate-every", "1000000"]
    flags += ["--validation.num-cells", "2"]  # the parent's would take longer than its training
    # The parent knows of no batches.
    flags += ["--gaussian.batch-column", "batch"] if name == OURS else []
    start = time.perf_counter()
    return train(parse(TrainConfig, [*flags, *more])), time.perf_counter() - start


def ways(long_steps: int) -> dict[str, tuple[str, dict]]:
    """Of drawing from the two checkpoints: config, and the head's options that are changed."""
    ddpm = {"sampler": "ddpm", "num_steps": long_steps}
    return {
        "parent": (PARENT, ddpm),
        "parent, PCA of training": (PARENT, ddpm | {"pca_fit": "train"}),
        "parent, unipc 20": (PARENT, {"sampler": "unipc", "num_steps": 20}),
        "ours": (OURS, {}),
        "ours, PCA per split": (OURS, {"pca_fit": "per_split"}),
    }


def scored(
    simulation: PerturbationSimulation, folder: Path, *, more: list[str], cells_each: int, long_steps: int
) -> dict:
    """Scores of all ways and baselines, seconds, and the figures of faults that need these cells."""
    seed = simulation.seed
    fold, oracle = simulated(simulation, cells_each)
    steps = ["--gaussian.num-steps", str(long_steps)]
    runs = {name: trained(name, fold, folder, seed, more + flags) for name, flags in {PARENT: steps, OURS: []}.items()}
    task, predictions, seconds = fold.task(), [oracle], {}
    for way, (name, changes) in ways(long_steps).items():
        checkpoint = runs[name][0]
        before = {key: getattr(checkpoint.model.config, key) for key in changes}
        for key, value in changes.items():
            setattr(checkpoint.model.config, key, value)
        start = time.perf_counter()
        predictions.append(_predicted(way, fold, task, checkpoint, seed, cells_each))
        seconds[way] = time.perf_counter() - start
        for key, value in before.items():
            setattr(checkpoint.model.config, key, value)
    parent = runs[PARENT][0].model
    options = runs[PARENT][0].config.gaussian
    shards = ShardFolder.open(folder / "shards")
    training, test = (read_perturbed(shards, options, split) for split in ("train", "test"))
    errors = {
        where: noise_errors(parent, training, cells, draws=8, most_cells=2000, seed=seed)
        for where, cells in (("trained on", training), ("unseen", test))
    }
    perturbed = test.select(np.flatnonzero(test.perturbation != CONTROL))
    return {
        "scores": to_json(score(task, predictions, BASELINES, seed=seed, num_bootstrap=0)),
        "seconds": seconds,
        "training seconds": {name: run[1] for name, run in runs.items()},
        "noise errors": errors,
        "own axes": own_axes(parent.basis, training, perturbed),
    }


def _predicted(name: str, fold: Fold, task: PerturbTask, checkpoint: Checkpoint, seed: int, number: int) -> Prediction:
    controls = fold.cells[(fold.cells.obs[COLUMN] == CONTROL).to_numpy()].copy()
    names = [unit.perturbation for unit in task.units]
    found = mdsc.predict_perturbations(checkpoint, controls, names, cells_per_perturbation=number, seed=seed)
    assert found.var_names.tolist() == list(task.genes)
    rows = found.obs[COLUMN].to_numpy()
    return Prediction(name, {unit: np.asarray(found.X[rows == unit.perturbation]) for unit in task.units})


def walks(
    simulation: PerturbationSimulation, folder: Path, *, chosen: list[tuple[str, int, bool]], seed: int, cells_each: int
) -> dict:
    """Of the head that `scored` trained by our config: sampler and steps -> scores, and seconds of drawing alone.

    The seed is of control cells and noise, the same for all samplers. chosen: sampler, steps, and whether cells are in
    pairs of opposite noise, as `sample.py` draws them. Such a pair is further apart than two cells of the law, which
    lowers an E-distance of few cells; ddpm forgets it. So samplers are compared without.
    """
    checkpoint = load_checkpoint(folder / OURS)
    fold, _ = simulated(simulation, 2)
    task, draw = fold.task(), _Draw(checkpoint, folder)
    predictions, seconds = [], {}
    for sampler, steps, in_pairs in chosen:
        name = f"{sampler} {steps}" + (PAIRS if in_pairs else "")
        options = DrawOptions(sampler=sampler, num_steps=steps)
        cells, seconds[name] = draw(task, options, seed, cells_each, in_pairs)
        predictions.append(Prediction(name, cells))
        print(f"  {name}, seed {seed}: {seconds[name]:.1f} s", flush=True)
    scores = to_json(score(task, predictions, (), seed=0, num_bootstrap=0))
    return {"seconds": seconds, "values": scores["values"], "units": scores["units"]}


class _Draw:
    """Cells of the test perturbations as `mdsc.sampling.gaussian_prediction` makes them, with the drawing timed."""

    def __init__(self, checkpoint: Checkpoint, folder: Path):
        self.head = checkpoint.model
        self.symbols = checkpoint.vocabulary.symbols
        training = read_perturbed(ShardFolder.open(folder / "shards"), checkpoint.config.gaussian, "train")
        self.controls = training.select(training.controls(""))
        self.panel = LatentCells(self.controls, self.head)

    @torch.no_grad()
    def __call__(
        self, task: PerturbTask, options: DrawOptions, seed: int, number: int, in_pairs: bool
    ) -> tuple[dict, float]:
        """All units in one go: as many cells as there are at once would else be few."""
        head, names = self.head, [unit.perturbation for unit in task.units]
        rows = np.tile(chosen_rows(len(self.controls), number, seed), len(names))
        place = {symbol: column for column, symbol in enumerate(self.symbols)}
        columns = [place[gene] for gene in task.genes]
        pooled, unperturbed = self.panel.pooled_of("", self.controls.batch[rows])
        residual = head.left_out(self.panel.expression(rows)) - head.left_out(unperturbed)
        told = torch.ones(len(rows), dtype=torch.bool)
        vectors = head.vectors_of(tuple(names)).repeat_interleave(number, dim=0)
        centre = unperturbed + head.shift(vectors, told, pooled)
        cells, around = self.panel.latents(rows), head.basis.to_latent(centre)
        keys = torch.arange(len(rows)) * (1 if in_pairs else 2)
        start = time.perf_counter()
        drawn = draw_latents(head, vectors, told, pooled, cells, around, options=options, seed=seed, keys=keys)
        seconds = time.perf_counter() - start
        expression = head.to_genes(drawn, head.left_out(centre) + residual).numpy()[:, columns]
        return dict(zip(task.units, np.split(expression, len(names)), strict=True)), seconds
