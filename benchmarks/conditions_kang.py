"""Interferon in a cell type that was never seen with it: kang2018_ifnb, one cell type's stimulated cells left out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from conditions_simulated import train
from jaxtyping import Float64, Int64
from real_cells import ROOT, most_variable, shared_file

from mdsc.checkpoint import Checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import parse
from mdsc.data.anndata_counts import read_counts
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.errors import UserError
from mdsc.prep.h5ad import H5adConfig, prepare_h5ad
from mdsc.sampling.anndata_generation import generate_anndata
from mdsc.sampling.anndata_inpainting import inpaint_anndata
from mdsc.sampling.anndata_prediction import predict_perturbations

if TYPE_CHECKING:
    from anndata import AnnData

NUM_GENES = 500
STIMULATED = "stimulated"
FLAGS = (
    "--data.condition-columns cell_type perturbation --tokenizer.name count --data.num-genes 500 "
    "--train.global-batch-size 32 --train.save-every 100000 --validation.num-cells 48"
)
GUIDANCE = (1.0, 2.0)
EDITED = (0.9, 0.5)
"""Shares of real control cells that are hidden at a time and drawn as those of stimulated cells."""
NUM_CELLS = 1000
"""Cells that are generated: the mean of 150 has so much noise that PearsonDelta is .05 lower."""


def kang_cells() -> "AnnData":
    """Counts of all genes; obs cell_type and perturbation."""
    import pandas as pd
    from anndata import AnnData

    if (path := shared_file("kang2018_ifnb.h5ad")) is None:
        raise UserError("--only: shared/data/kang2018_ifnb.h5ad is not beside the repository; leave kang out.")
    cells = read_counts(path)
    obs = cells.obs[["cell_type", "condition"]].astype(str)
    obs = obs.rename(columns={"condition": COLUMN}).replace({COLUMN: {"control": CONTROL}})
    return AnnData(sp.csr_matrix(cells.counts), obs=obs, var=pd.DataFrame(index=cells.var.index.astype(str)))


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Cells of one task; its genes are chosen without the cells that are left out."""

    cell_type: str
    training: "AnnData"
    control: "AnnData"
    """Of the cell type; some of the training cells."""
    stimulated: "AnnData"
    """What is to be predicted; no training cell."""

    @classmethod
    def of(cls, cells: "AnnData", cell_type: str) -> "LeftOut":
        is_type = (cells.obs["cell_type"] == cell_type).to_numpy()
        is_left_out = is_type & (cells.obs[COLUMN] == STIMULATED).to_numpy()
        genes = most_variable(cells.X[~is_left_out], NUM_GENES)
        cells = cells[:, genes].copy()
        return cls(
            cell_type, cells[~is_left_out].copy(), cells[is_type & ~is_left_out].copy(), cells[is_left_out].copy()
        )

    def delta(self, predicted: "AnnData | sp.csr_matrix") -> Float64[np.ndarray, " genes"]:
        """Mean over cells, less that of the cell type's real control cells."""
        return mean_log(getattr(predicted, "X", predicted)) - mean_log(self.control.X)

    def score(self, delta: Float64[np.ndarray, " genes"]) -> float:
        """PearsonDelta: over genes, with the true change."""
        return float(np.corrcoef(delta, self.delta(self.stimulated))[0, 1])


def mean_log(counts: sp.csr_matrix) -> Float64[np.ndarray, " genes"]:
    """Mean over cells of log1p(counts per 10,000 counts of these genes). Cells without a count are left out."""
    depth = np.asarray(counts.sum(axis=1)).ravel()
    shares = sp.diags(1e4 / depth[depth > 0]) @ counts[depth > 0]
    return np.asarray(shares.log1p().mean(axis=0)).ravel()


def score_left_out(cells: "AnnData", cell_type: str, folder: Path, seed: int, steps: int, num_steps: int) -> dict:
    """PearsonDelta of the model and of the baselines for one cell type and one seed of training."""
    task = LeftOut.of(cells, cell_type)
    checkpoint = trained(task, folder, seed, steps)
    condition = {"cell_type": cell_type, COLUMN: STIMULATED}
    scores = {}
    for guidance in GUIDANCE:
        options = {"guidance": guidance, "num_steps": num_steps}
        stimulated = generate_anndata(checkpoint, NUM_CELLS, condition=condition, seed=seed, **options)
        control = generate_anndata(
            checkpoint, NUM_CELLS, condition=condition | {COLUMN: CONTROL}, seed=seed + 1, **options
        )
        name = f"generated, guidance {guidance:g}"
        scores[name] = task.score(task.delta(stimulated))
        scores[f"{name}, less generated control"] = task.score(mean_log(stimulated.X) - mean_log(control.X))
        for share in EDITED:
            scores |= {
                f"{name}, guidance {guidance:g}": task.score(task.delta(counts))
                for name, counts in edited(checkpoint, task, share, seed, options)
            }
    return {
        "model": scores,
        "baselines": baselines(task),
        "cells": {"control": task.control.n_obs, "stimulated": task.stimulated.n_obs},
    }


def edited(
    checkpoint: Checkpoint, task: LeftOut, share: float, seed: int, options: dict
) -> Iterator[tuple[str, sp.csr_matrix]]:
    """Counts of control cells edited: each gene anew, once with the rest kept, and with the rest misread."""
    whole = predict_perturbations(
        checkpoint,
        task.control,
        [STIMULATED],
        edit_fraction=share,
        cells_per_perturbation=NUM_CELLS,
        seed=seed,
        **options,
    )
    yield f"edited, {share:.0%} hidden", whole[(whole.obs[COLUMN] == STIMULATED).to_numpy()].layers["counts"]
    condition = {"cell_type": task.cell_type, COLUMN: STIMULATED}
    for name, seen in (("the rest kept", {COLUMN: CONTROL}), ("the rest kept and read as stimulated", None)):
        kept = inpaint_anndata(
            checkpoint, task.control, mask_ratio=share, condition=condition, seen_under=seen, seed=seed, **options
        )
        yield f"edited, {share:.0%} hidden, {name}", kept.layers["mdsc_sampled"]


def trained(task: LeftOut, folder: Path, seed: int, steps: int) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cells.h5ad"
    task.training.write_h5ad(path)
    shards = folder / "shards"
    prepare_h5ad(H5adConfig(inputs=(path,), output_dir=shards, condition_columns=("cell_type", COLUMN)))
    flags = ["--config", str(ROOT / "configs" / "laptop.yaml"), *FLAGS.split(), "--data.dir", str(shards)]
    flags += ["--output-dir", str(folder / "run"), "--seed", str(seed), "--train.max-steps", str(steps)]
    return train(parse(TrainConfig, flags))


def baselines(task: LeftOut) -> dict[str, float | None]:
    """Of the training cells alone. The control mean predicts no change, which correlates with nothing."""
    control, change = pseudobulks(task)
    own = mean_log(task.control.X)
    training, is_stimulated = task.training.X, (task.training.obs[COLUMN] == STIMULATED).to_numpy()
    is_other = (task.training.obs["cell_type"] != task.cell_type).to_numpy()
    all_others = mean_log(training[is_other & is_stimulated]) - mean_log(training[is_other & ~is_stimulated])
    stimulated_others = mean_log(training[is_other & is_stimulated]) - own
    return {
        "control mean": None,
        "mean of other types' stimulated cells": task.score(stimulated_others),
        "mean change of the other types": task.score(change.mean(axis=0)),
        "change of all other cells (linear shift)": task.score(all_others),
        "ridge on the types' control means": task.score(ridge(control, change, own)),
        "half of the stimulated cells (ceiling)": split_half(task),
    }


def pseudobulks(task: LeftOut) -> tuple[Float64[np.ndarray, "types genes"], Float64[np.ndarray, "types genes"]]:
    """Means of the other cell types' control cells, and their changes."""
    obs, counts = task.training.obs, task.training.X
    types = [name for name in sorted(obs["cell_type"].unique()) if name != task.cell_type]

    def mean(name: str, condition: str) -> np.ndarray:
        return mean_log(counts[((obs["cell_type"] == name) & (obs[COLUMN] == condition)).to_numpy()])

    control = np.stack([mean(name, CONTROL) for name in types])
    return control, np.stack([mean(name, STIMULATED) for name in types]) - control


def ridge(
    control: Float64[np.ndarray, "types genes"],
    change: Float64[np.ndarray, "types genes"],
    own: Float64[np.ndarray, " genes"],
) -> Float64[np.ndarray, " genes"]:
    """The change as a linear function of the control mean; the penalty by leaving one type out at a time."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(control, change).predict(own[None])[0]


def split_half(task: LeftOut) -> float:
    """One half of the true stimulated cells as the prediction of the other half."""
    order: Int64[np.ndarray, " cells"] = np.random.default_rng(0).permutation(task.stimulated.n_obs)
    halves = np.array_split(order, 2)
    changes = [task.delta(task.stimulated.X[np.sort(half)]) for half in halves]
    return float(np.corrcoef(*changes)[0, 1])
