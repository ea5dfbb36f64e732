"""Cells under perturbations, from control cells, by a masked model or by a Gaussian head; beside the control cells.

X                     log expression: log1p of counts per 10,000 over these genes (float32)
layers["counts"]      sampled counts; those of the control cells are their own (masked model)
layers["expected"]    log expression of posterior mean counts (masked model, edited cells)
obs                   perturbation ("ctrl": the real control cells), control_cell (the cell that each was made from),
                      and what the control cells' obs has of labels
uns["mdsc"]           how it was made
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdsc import __version__
from mdsc.checkpoint import Checkpoint, checkpoint_folder, checkpoint_name, model_class
from mdsc.data.anndata_counts import CellCounts
from mdsc.data.log_expression import log_normalised
from mdsc.data.perturbations import COLUMN, CONTROL, canonical
from mdsc.errors import UserError
from mdsc.perturbation.head import GaussianHead
from mdsc.progress import say_nothing
from mdsc.sampling.conditions import Features
from mdsc.sampling.filled_layers import joined
from mdsc.sampling.gaussian_prediction import predict_gaussian
from mdsc.sampling.keyword_options import taken_from
from mdsc.sampling.loaded_model import opened, provenance
from mdsc.sampling.masked_prediction import predict_masked
from mdsc.sampling.options import DEFAULTS, PredictionOptions, SamplerOptions
from mdsc.sampling.pass_size import PassOptions
from mdsc.sampling.predicted_cells import PredictedCells, chosen_rows, read_controls
from mdsc.sampling.progress import SamplingProgress

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

CONTROL_CELL = "control_cell"
NOT_CONTEXTS = (COLUMN, CONTROL_CELL, "split")
MOST_ROWS = 1000
"""Cells that are dense at once, of those that are copied."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """What is asked for, before a cell is made."""

    checkpoint: Checkpoint | Path
    """A folder of a Gaussian head is read by what predicts with it."""
    controls: CellCounts
    perturbations: tuple[str, ...]
    condition: Mapping[str, str] = field(default_factory=dict)
    features: Features = field(default_factory=dict)
    guidance: float = 1.0
    seed: int = 0
    options: PredictionOptions
    sampling: SamplerOptions
    passes: PassOptions
    say: Callable[[str], None] = say_nothing

    @classmethod
    def of(cls, checkpoint: str | Path | Checkpoint, controls: CellCounts, **others) -> "Prediction":
        """UserError for what one of the heads does not read; the rest is told by `portions`."""
        asked = cls(checkpoint=_ready(checkpoint), controls=controls, **others)
        if not asked.perturbations:
            raise UserError("--perturbation lists none: give the symbols of perturbed genes, e.g. SPI1 BHLHE40.")
        if COLUMN in asked.condition:
            raise UserError(f"--condition {COLUMN}: what is to be predicted is given by --perturbation.")
        options = asked.options
        if asked.is_gaussian and asked.sampling != DEFAULTS:
            raise UserError(
                "the checkpoint is a Gaussian head, which has samplers of its own: give --latent-sampler and "
                "--latent-steps, and no options of the masked model's samplers."
            )
        wrong = options.of_masked if asked.is_gaussian else options.of_gaussian
        if wrong:
            kind = "Gaussian head" if asked.is_gaussian else "masked model"
            raise UserError(f"{wrong[0]} is not read by a {kind}, which the checkpoint is: leave it out.")
        contexts = {name: np.full(len(controls.obs), level) for name, level in asked.condition.items()}
        return replace(asked, controls=replace(controls, obs=controls.obs.assign(**contexts)))

    @property
    def is_gaussian(self) -> bool:
        return _is_gaussian(self.checkpoint)

    @property
    def num_cells(self) -> int:
        """Of each perturbation."""
        return len(chosen_rows(len(self.controls.obs), self.options.cells_per_perturbation, self.seed))

    def progress(self, *, show: bool) -> SamplingProgress:
        fraction = self.options.edit_fraction
        times = 1 if fraction is None or self.options.keep_visible else np.ceil(1 / fraction)
        passes = int(times * (self.sampling.num_steps + (fraction is not None)))
        return SamplingProgress("predicting", self.num_cells * len(self.perturbations), passes, show=show)

    def portions(self, progress: SamplingProgress | None = None) -> Iterator[PredictedCells]:
        """One for each perturbation. What cannot be predicted is a UserError before the first."""
        options = self.options
        common = {
            "num_cells": options.cells_per_perturbation,
            "guidance": self.guidance,
            "seed": self.seed,
            "features": self.features,
            "say": self.say,
        }
        if self.is_gaussian:
            given = {"sampler": options.latent_sampler, "num_steps": options.latent_steps}
            return predict_gaussian(self.checkpoint, self.controls, self.perturbations, **common, **given)
        return predict_masked(
            self.checkpoint,
            self.controls,
            self.perturbations,
            **common,
            condition=self.condition,
            edit_fraction=options.edit_fraction,
            keep_visible=options.keep_visible,
            sampling=self.sampling,
            passes=self.passes,
            progress=progress,
        )

    @property
    def contexts(self) -> tuple[str, ...]:
        """Columns of obs that a predicted cell takes from its control cell: labels, and no measurements."""
        obs = self.controls.obs
        labels = obs.select_dtypes(["object", "string", "category", "bool"]).columns
        return tuple(str(name) for name in labels if name not in NOT_CONTEXTS)

    def obs_of(self, perturbation: str, rows: np.ndarray) -> dict[str, list[str]]:
        """Columns of obs of cells made from these control cells; "" for unknown."""
        obs = self.controls.obs
        names = obs.index.astype(str).to_numpy()
        found = {COLUMN: [perturbation] * len(rows)}
        for name in self.contexts:
            column = obs[name]
            text = np.where(column.isna(), "", column.astype(str))
            found[name] = np.where(rows >= 0, text[rows], "").tolist()
        return found | {CONTROL_CELL: np.where(rows >= 0, names[rows], "").tolist()}

    def names_of(self, cells: PredictedCells) -> list[str]:
        return [f"{cells.perturbation}_{number}" for number in range(len(cells.rows))]

    def control_cells(self, like: PredictedCells, rows: slice) -> PredictedCells:
        """Real control cells, with the matrices and the genes that predicted ones have."""
        counts = self.controls.counts[rows][:, like.columns]
        expression = log_normalised(counts).astype(np.float32).toarray()
        numbers = np.arange(rows.start, rows.start + counts.shape[0])
        expected = None if like.expected is None else expression
        return PredictedCells(
            CONTROL, numbers, like.columns, expression, None if like.counts is None else counts, expected
        )

    def var_of(self, cells: PredictedCells) -> "pd.DataFrame":
        """Names of the genes, as the control cells have them; with Ensembl ids where these are known."""
        import pandas as pd

        var = self.controls.var.iloc[cells.columns]
        kept = [name for name in ("ensembl_id", "gene_symbol") if name in var]
        return pd.DataFrame({name: var[name].astype(str).to_numpy() for name in kept}, index=var.index.astype(str))

    def about(self) -> dict:
        """How it is made, in types that h5ad keeps."""
        made = {name: value for name, value in asdict(self.options).items() if value is not None}
        if self.is_gaussian:
            folder = self.checkpoint
            source = str(folder.model.name_or_path) if isinstance(folder, Checkpoint) else checkpoint_name(folder)
            model = {"version": __version__, "checkpoint": source, "head": "gaussian"}
            made = {name: value for name, value in made.items() if name != "keep_visible"}
        else:
            model = provenance(self.checkpoint) | {"head": "masked"} | self.sampling.record()
        return {
            "task": "perturbation",
            "perturbations": list(dict.fromkeys(canonical(name) for name in self.perturbations)),
            "how": "latent" if self.is_gaussian else "generated" if self.options.edit_fraction is None else "edited",
            "seed": self.seed,
            "guidance": self.guidance,
            "conditions": dict(self.condition),
            **made,
            **model,
        }


def predict_perturbations(
    checkpoint: str | Path | Checkpoint,
    controls: "AnnData",
    perturbations: Sequence[str],
    *,
    layer: str | None = None,
    condition: Mapping[str, str] | None = None,
    condition_features: Features | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options,
) -> "AnnData":
    """Predict cells under perturbations; see the top of this file for what the result holds.

    Args:
        checkpoint: folder, name on the hub, or a checkpoint that is loaded; of a masked model or of a Gaussian head.
        controls: raw counts of control cells; of a column obs["perturbation"] those that are "ctrl".
        perturbations: symbols of genes, or two joined by "+", that the model knows by cells or by features.
        layer: where the counts are: the name of a layer, or "raw".
        condition: levels for all cells, e.g. {"cell_type": "K562"}, in place of those in the control cells' obs.
        condition_features: features of further levels, e.g. {"perturbation": "genes.parquet"}.
        guidance: how much the perturbation counts: 1 is the model itself (`mdsc.sampling.guidance`).
        seed: chooses the control cells, what is hidden and what is drawn.
        say: told what is worth knowing, a line at a time, e.g. `print`.
        show_progress: draw a bar; an output that is no terminal gets a line now and then.
        options: fields of `PredictionOptions` (edit_fraction, keep_visible, cells_per_perturbation, latent_sampler,
            latent_steps), `SamplerOptions` and `PassOptions`.
    """
    import pandas as pd
    from anndata import AnnData

    predicting, sampling, passes = taken_from(options, PredictionOptions, SamplerOptions, PassOptions)
    say = say or say_nothing
    prediction = Prediction.of(
        checkpoint,
        read_controls(controls, layer, "the AnnData", say),
        perturbations=tuple(perturbations),
        condition=condition or {},
        features=condition_features or {},
        guidance=guidance,
        seed=seed,
        options=predicting,
        sampling=sampling,
        passes=passes,
        say=say,
    )
    with prediction.progress(show=show_progress) as progress:
        cells = list(prediction.portions(progress))
    cells.insert(0, prediction.control_cells(cells[0], slice(0, len(prediction.controls.obs))))
    names = [prediction.controls.obs.index.astype(str).tolist(), *map(prediction.names_of, cells[1:])]
    obs = [
        pd.DataFrame(prediction.obs_of(part.perturbation, part.rows), index=index)
        for part, index in zip(cells, names, strict=True)
    ]
    matrices = {name: joined([matrices_of(part)[name] for part in cells]) for name in matrices_of(cells[0])}
    x = matrices.pop("X")
    table = pd.concat(obs).replace({"": None}).astype("category")
    return AnnData(x, obs=table, var=prediction.var_of(cells[0]), layers=matrices, uns={"mdsc": prediction.about()})


def matrices_of(cells: PredictedCells) -> "dict[str, np.ndarray | sp.csr_matrix]":
    """X and layers; X is sparse where there are counts, as it is 0 where they are."""
    import scipy.sparse as sp

    if cells.counts is None:
        return {"X": cells.expression}
    found = {"X": sp.csr_matrix(cells.expression), "counts": cells.counts}
    return found if cells.expected is None else found | {"expected": cells.expected}


def _ready(checkpoint: str | Path | Checkpoint) -> Checkpoint | Path:
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    folder = checkpoint_folder(checkpoint)
    return folder if _is_gaussian(folder) else opened(folder)


def _is_gaussian(checkpoint: Checkpoint | Path) -> bool:
    if isinstance(checkpoint, Checkpoint):
        return isinstance(checkpoint.model, GaussianHead)
    return model_class(checkpoint) is GaussianHead
