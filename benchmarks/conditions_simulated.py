"""Drugs of known effect: are they found again in the cells that a model makes, and does guidance move them?"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from real_cells import ROOT

from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.prep.simulate import simulate_anndata, simulate_shards
from mdsc.prep.simulated_cells import CONTROL, SimulationConfig, Truth
from mdsc.sampling.anndata_generation import generate_anndata
from mdsc.training.command import train_to_the_end
from mdsc.training.progress import RunProgress
from mdsc.training.sharding import make_accelerator

GUIDANCE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
KNOWN = SimulationConfig(num_cells=5000, num_genes=100, num_types=3, num_drugs=3)
UNSEEN = replace(
    KNOWN, num_cells=8000, num_drugs=30, unseen_drugs=4, feature_size=4, genes_per_drug=15, drug_effect=0.5
)
FLAGS = (
    "--data.condition-columns cell_type drug --tokenizer.name count --data.num-genes 100 "
    "--train.global-batch-size 64 --train.save-every 100000"
)
FEWER = 3
"""Cells at other guidance than 1 are so many times fewer: each takes two passes, and a slope is all that is asked."""
PSEUDOCOUNT = 0.05
"""Counts a cell, added to means before logarithms are taken."""


def train(config: TrainConfig) -> Checkpoint:
    progress = RunProgress(config.train.max_steps, show=False)
    return load_checkpoint(train_to_the_end(config, make_accelerator(), progress))


def known_drugs(folder: Path, seed: int, steps: int, num_cells: int, num_steps: int) -> dict:
    """Of one truth and one training: r and slope of each drug's generated effect, by guidance; and real cells' own."""
    truth = Truth.of(replace(KNOWN, seed=seed))
    checkpoint = trained(truth, folder, steps, ())
    found = {
        f"{guidance:g}": effects_of(checkpoint, truth, truth.drugs[1:], guidance, number, num_steps)
        for guidance in GUIDANCE
        if (number := num_cells if guidance == 1 else num_cells // FEWER)
    }
    typed = effects_of(checkpoint, truth, truth.drugs[1:], 1.0, num_cells, num_steps, with_types=True)
    return {"guidance": found, "cell type told too": typed, "real": real_effects(truth, truth.drugs[1:])}


def unseen_drugs(folder: Path, seed: int, steps: int, num_cells: int, num_steps: int) -> dict:
    """Of drugs that no training cell has had, known by their features alone; beside drugs that were trained on."""
    truth = Truth.of(replace(UNSEEN, seed=seed))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "drug_features.parquet"
    write_features(LevelFeatures(tuple(truth.drugs), truth.features, "the simulator"), path)
    checkpoint = trained(truth, folder, steps, (f"drug={path}",))
    unseen, seen = truth.drugs[-UNSEEN.unseen_drugs :], truth.drugs[1 : 1 + UNSEEN.unseen_drugs]
    found = {
        f"{kind}{', cell type told too' * with_types}": effects_of(
            checkpoint, truth, drugs, 1.0, num_cells, num_steps, with_types=with_types
        )
        for kind, drugs in (("unseen", unseen), ("seen", seen))
        for with_types in (False, True)
    }
    return {"generated": found, "baselines": feature_baselines(truth, unseen), "real": real_effects(truth, unseen)}


def trained(truth: Truth, folder: Path, steps: int, features: tuple[str, ...]) -> Checkpoint:
    shards = simulate_shards(truth, folder / "shards")
    flags = ["--config", str(ROOT / "configs" / "laptop.yaml"), *FLAGS.split(), "--data.dir", str(shards.path)]
    flags += ["--output-dir", str(folder / "run"), "--seed", str(truth.config.seed), "--train.max-steps", str(steps)]
    config = parse(TrainConfig, flags)
    return train(replace(config, data=replace(config.data, condition_features=features)))


def effects_of(
    checkpoint: Checkpoint,
    truth: Truth,
    drugs: list[str],
    guidance: float,
    num_cells: int,
    num_steps: int,
    *,
    with_types: bool = False,
) -> dict[str, dict[str, float]]:
    """Effects in generated cells, against as many cells under control that have had the same guidance.

    with_types: tell the cell type, too, as many cells of each. Else the model draws it, and not quite evenly: two sets
    of cells then differ by what tells the types apart as well.
    """
    import pandas as pd

    types = pd.DataFrame({"cell_type": truth.types}) if with_types else None

    def mean(drug: str) -> Float64[np.ndarray, " genes"]:
        # Each has its own seed: cells that share their draws would differ by less than chance.
        cells = generate_anndata(
            checkpoint,
            num_cells,
            condition={"drug": drug},
            conditions_from=types,
            guidance=guidance,
            seed=truth.drugs.index(drug),
            num_steps=num_steps,
        )
        return np.asarray(cells.X.mean(axis=0)).ravel()

    control = mean(CONTROL)
    return {drug: agreement(mean(drug), control, truth, drug) for drug in drugs}


def real_effects(truth: Truth, drugs: list[str]) -> dict[str, dict[str, float]]:
    """The same of all cells that the simulation has made: what they allow to learn, and no more."""
    cells = simulate_anndata(truth)

    def mean(drug: str) -> Float64[np.ndarray, " genes"]:
        return np.asarray(cells.X[(cells.obs["drug"] == drug).to_numpy()].mean(axis=0)).ravel()

    control = mean(CONTROL)
    return {drug: agreement(mean(drug), control, truth, drug) for drug in drugs}


def feature_baselines(truth: Truth, unseen: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Pseudobulk log fold changes of the training drugs: their mean, and a ridge regression on the features."""
    from sklearn.linear_model import RidgeCV

    cells = simulate_anndata(truth)
    is_training = (cells.obs["split"] == "train").to_numpy()
    mean = {
        drug: np.asarray(cells.X[is_training & (cells.obs["drug"] == drug).to_numpy()].mean(axis=0)).ravel()
        for drug in truth.drugs
        if drug not in unseen
    }
    drugs = [drug for drug in mean if drug != CONTROL]
    change = np.stack([log_change(mean[drug], mean[CONTROL]) for drug in drugs])
    ridge = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(truth.features[[truth.drugs.index(d) for d in drugs]], change)
    predicted = {drug: ridge.predict(truth.features[[truth.drugs.index(drug)]])[0] for drug in unseen}
    return {
        "mean of the training drugs": {drug: score(change.mean(axis=0), truth, drug) for drug in unseen},
        "ridge on the features": {drug: score(predicted[drug], truth, drug) for drug in unseen},
    }


def log_change(
    treated: Float64[np.ndarray, " genes"], control: Float64[np.ndarray, " genes"]
) -> Float64[np.ndarray, " genes"]:
    return np.log(treated + PSEUDOCOUNT) - np.log(control + PSEUDOCOUNT)


def agreement(
    treated: Float64[np.ndarray, " genes"], control: Float64[np.ndarray, " genes"], truth: Truth, drug: str
) -> dict[str, float]:
    return score(log_change(treated, control), truth, drug)


def score(change: Float64[np.ndarray, " genes"], truth: Truth, drug: str) -> dict[str, float]:
    """Pearson r over all genes with the truth's effect, and the slope of the change on it."""
    effect = truth.effects[truth.drugs.index(drug)]
    slope = float(np.cov(change, effect, bias=True)[0, 1] / effect.var())
    return {"r": float(np.corrcoef(change, effect)[0, 1]), "slope": slope}
