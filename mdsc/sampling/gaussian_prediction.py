"""Cells under perturbations by a Gaussian head: latents are drawn, and decoded to log expression."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.data.anndata_counts import CellCounts
from mdsc.data.condition_levels import near_names
from mdsc.data.genes import known_columns
from mdsc.data.level_features import LevelFeatures, read_features
from mdsc.data.log_expression import log_normalised
from mdsc.data.perturbations import canonical
from mdsc.errors import UserError
from mdsc.perturbation.generation import DrawOptions, draw_latents
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.paired_batches import LatentCells
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.perturbed_cells import PerturbedCells
from mdsc.sampling.conditions import Features
from mdsc.sampling.predicted_cells import PredictedCells, chosen_rows, seed_of


def predict_gaussian(
    checkpoint: str | Path | Checkpoint,
    controls: CellCounts,
    perturbations: Sequence[str],
    *,
    num_cells: int | None,
    guidance: float,
    seed: int,
    features: Features,
    say: Callable[[str], None],
    sampler: str | None = None,
    num_steps: int | None = None,
) -> Iterator[PredictedCells]:
    """One portion for each perturbation; UserError before the first for what cannot be predicted.

    Each cell is drawn beside one control cell, and the pooled control cells of its context and batch. What the PCA
    leaves out of that control cell it keeps: cells within the span of a few components would have too little variance.
    sampler, num_steps: by default those that the head was trained with.
    """
    head, vocabulary = _opened(checkpoint)
    options = DrawOptions(
        sampler=sampler or head.config.sampler, num_steps=num_steps or head.config.num_steps, guidance=guidance
    )
    names = tuple(dict.fromkeys(canonical(name) for name in perturbations))
    if head.config.control in names or "ctrl" in names:
        raise UserError("--perturbation ctrl: control cells are copied into every prediction, and not predicted.")
    vectors = _vectors(head, names, features)
    panel = _Panel.of(head, vocabulary, controls, say)
    rows = chosen_rows(len(panel.cells), num_cells, seed)
    latents = panel.latents.latents(rows)
    contexts, batches = panel.cells.context[rows], panel.cells.batch[rows]
    around = [panel.latents.pooled_of(context, batches[i : i + 1]) for i, context in enumerate(contexts.tolist())]
    pooled, unperturbed = (torch.cat(parts).to(head.device) for parts in zip(*around, strict=True))
    whole = torch.stack([panel.latents.pooled[context, None] for context in contexts.tolist()]).to(head.device)
    own_residual = panel.latents.residuals(rows) - head.left_out(unperturbed)
    is_perturbed = torch.ones(len(rows), dtype=torch.bool, device=head.device)

    def portions() -> Iterator[PredictedCells]:
        for name, vector in zip(names, vectors, strict=True):
            own = vector.expand(len(rows), -1)
            centre = unperturbed + head.shift(own, is_perturbed, whole)
            drawn = draw_latents(
                head,
                own,
                is_perturbed,
                pooled,
                latents,
                head.basis.to_latent(centre),
                options=options,
                seed=seed_of(seed, name),
                keys=torch.arange(len(rows)),
            )
            expression = _expression(head, drawn, head.left_out(centre) + own_residual)
            yield PredictedCells(name, rows, panel.columns, expression[:, panel.places])

    return portions()


@torch.no_grad()
def _expression(
    head: GaussianHead, latents: Float[Tensor, "cells k"], left_out: Float[Tensor, "cells genes"]
) -> Float32[np.ndarray, "cells genes"]:
    parts = zip(latents.split(1024), left_out.split(1024), strict=True)
    return np.concatenate([head.to_genes(*part).cpu().numpy() for part in parts])


def _opened(checkpoint: str | Path | Checkpoint) -> tuple[GaussianHead, object]:
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    assert isinstance(loaded.model, GaussianHead)
    if loaded is not checkpoint:
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded.model.eval(), loaded.vocabulary


def _vectors(head: GaussianHead, names: tuple[str, ...], features: Features) -> list[Float[Tensor, " d"]]:
    """Of the head's own table, or of features that are given now, which go first."""
    column = head.config.perturbation_column
    if others := [name for name in features if name not in (column, "perturbation")]:
        raise UserError(f"--condition-features {others[0]}: the Gaussian head reads features of {column} alone.")
    given: LevelFeatures | None = next(iter(features[name] for name in features), None)
    if given is None:
        return list(head.vectors_of(names))
    if not head.config.has_features:
        raise UserError("--condition-features: this Gaussian head was trained without gene embeddings.")
    given = given if isinstance(given, LevelFeatures) else read_features(given)
    if given.values.shape[1] != head.config.num_features:
        raise UserError(
            f"--condition-features: {given.source} has {given.values.shape[1]} numbers for each name, and the model "
            f"was trained with {head.config.num_features}."
        )
    row_of = {name: row for row, name in enumerate(given.names)}
    found = []
    for name in names:
        if name in row_of:
            feature = torch.from_numpy(given.values[row_of[name]]).float().to(head.device)
            found.append(head.vectors.reduced(feature[None])[0])
        else:
            found.append(head.vectors_of((name,))[0])
    return found


@dataclass(frozen=True, eq=False)
class _Panel:
    """Control cells over the head's genes."""

    cells: PerturbedCells
    latents: LatentCells
    columns: Int64[np.ndarray, " genes"]
    """Of the control cells' genes, those that the head has."""
    places: Int64[np.ndarray, " genes"]
    """Of the head's genes, in the same order."""

    @classmethod
    def of(cls, head: GaussianHead, vocabulary, controls: CellCounts, say: Callable[[str], None]) -> "_Panel":
        import scipy.sparse as sp

        places = vocabulary.match_var(controls.var, "the control cells")
        columns = known_columns(places)
        if not len(columns):
            raise UserError("the control cells have no gene that the model knows: are they named by other identifiers?")
        known = sp.csr_matrix(controls.counts[:, columns])
        wide = sp.csr_matrix(
            (known.data, places[columns][known.indices], known.indptr), (known.shape[0], len(vocabulary))
        )
        wide.sort_indices()
        if missing := len(vocabulary) - len(columns):
            say(f"the control cells lack {missing:,} of the model's {len(vocabulary):,} genes: they count as its mean")
        config = head.config
        cells = PerturbedCells(
            wide,
            np.full(known.shape[0], config.control),
            _told(controls, config.context_columns or [], say),
            _told(controls, [] if config.batch_column is None else [config.batch_column], say),
            config.control,
        )
        basis = None
        if config.pca_fit == "per_split":
            say("warning: --gaussian.pca-fit per_split: these control cells are read by a PCA of their own")
            basis = PcaBasis.fit(log_normalised(wide), config.pca_size, seed=0).to(head.device)
        measured = np.isin(np.arange(len(vocabulary)), places[columns])
        latents = _ControlLatents(cells, head, basis, None if measured.all() else torch.from_numpy(measured))
        return cls(cells, latents, columns, places[columns])


class _ControlLatents(LatentCells):
    """Genes that were not measured have the training cells' mean; another basis may be what they are read by."""

    def __init__(self, cells: PerturbedCells, head: GaussianHead, basis: PcaBasis | None, measured: Tensor | None):
        super().__init__(cells, head)
        self.basis = head.basis if basis is None else basis
        self.measured = measured

    def mean_expression(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, " genes"]:
        mean = super().mean_expression(rows)
        return mean if self.measured is None else torch.where(self.measured, mean, self.basis.mean.cpu())

    def expression(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows genes"]:
        expression = super().expression(rows)
        if self.measured is not None:
            expression = torch.where(self.measured.to(expression.device), expression, self.basis.mean)
        return expression

    @torch.no_grad()
    def residuals(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows genes"]:
        """What the head's PCA leaves out of cells."""
        return torch.cat(
            [self.head.left_out(self.expression(part)) for part in np.array_split(rows, -(-len(rows) // 1024))]
        )


def _told(controls: CellCounts, columns: Sequence[str], say: Callable[[str], None]) -> np.ndarray:
    parts = []
    for name in columns:
        if name not in controls.obs:
            near = near_names(name, map(str, controls.obs.columns), "they have")
            say(f"the control cells have no column obs[{name!r}] ({near}): all are taken for one {name}")
            continue
        column = controls.obs[name]
        parts.append(np.where(column.isna(), "", column.astype(str)))
    if not parts:
        return np.full(len(controls.obs), "", dtype="<U1")
    return np.array(["; ".join(cell) for cell in zip(*parts, strict=True)])
