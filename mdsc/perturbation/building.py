"""A Gaussian head that starts from the training cells: their PCA, gene vectors, and the ridge regression of effects."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Float64

from mdsc.config.schema import GaussianConfig
from mdsc.data.level_features import FittedFeatures, LevelFeatures, fit_features
from mdsc.data.log_expression import log_normalised
from mdsc.errors import UserError
from mdsc.perturbation.configuration import GaussianHeadConfig
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.perturbed_cells import PerturbedCells, Unit
from mdsc.perturbation.ridge_shift import RidgeShift

NOISE = {"flow": "flow", "v": "cosine", "edm": "edm", "epsilon": "linear"}
"""The noise levels that --gaussian.noise auto takes for each target."""


def build_head(
    options: GaussianConfig,
    cells: PerturbedCells,
    features: LevelFeatures | None,
    *,
    seed: int,
    say: Callable[[str], None],
) -> GaussianHead:
    """A new head, fitted to these training cells. Its network is drawn from torch's global generator.

    features: embeddings of genes by name; without them a perturbation is known by name alone, and none that has no
    training cell can be predicted. `say` is told what is left out.
    """
    num_cells, num_genes = cells.counts.shape
    size = options.pca_size
    if size is not None and size >= min(num_cells, num_genes):
        raise UserError(
            f"--gaussian.pca-size {size}: {num_cells:,} training cells of {num_genes:,} genes have fewer components; "
            f"give {max(min(num_cells, num_genes) - 1, 1)} at most."
        )
    fitted, units = _vectors(options, cells, features, say)
    contexts = {unit.context for unit in units}
    head = GaussianHead(
        GaussianHeadConfig(
            num_genes=num_genes,
            pca_size=size,
            pca_fit=options.pca_fit,
            perturbation_column=options.perturbation_column,
            control=options.control,
            levels=sorted({unit.perturbation for unit in units}),
            context_columns=list(options.context_columns),
            batch_column=options.batch_column,
            feature_names=list(fitted.names),
            num_features=len(fitted.mean),
            vector_size=fitted.size,
            has_features=features is not None,
            start=options.start,
            several_contexts=len(contexts) > 1,
            num_units=len(units),
            vector_condition=options.vector_condition,
            pooled_condition=options.pooled_condition,
            cell_condition=options.cell_condition,
            denoiser=options.denoiser,
            width=options.width,
            num_layers=options.num_layers,
            dropout=options.dropout,
            target=options.target,
            noise=NOISE[options.target] if options.noise == "auto" else options.noise,
            set_size=options.set_size,
            decoder_width=options.decoder_width,
            sampler=options.sampler,
            num_steps=options.num_steps,
        )
    )
    with torch.no_grad():
        for name in ("vectors", "mean", "basis"):
            getattr(head.vectors, name).copy_(torch.from_numpy(getattr(fitted, name)))
        basis = PcaBasis.fit(log_normalised(cells.counts), size, seed)
        head.basis.load_state_dict(basis.state_dict())
        if options.start != "none":
            _fit_shift(head, cells, units, left_out=options.start == "ridge_left_out")
    return head


def training_units(cells: PerturbedCells, head: GaussianHead) -> list[Unit]:
    """The units that the head was fitted to, in the order of its table of shifts."""
    levels = set(head.config.levels)
    return [unit for unit in cells.units() if unit.perturbation in levels]


def _vectors(
    options: GaussianConfig, cells: PerturbedCells, features: LevelFeatures | None, say: Callable[[str], None]
) -> tuple[FittedFeatures, list[Unit]]:
    """Vectors of perturbations, and the units whose perturbation has one."""
    few = [unit for unit, rows in cells.rows_of.items() if unit not in set(cells.units()) and len(rows)]
    few = [unit for unit in few if unit.perturbation != options.control]
    if few:
        say(f"{len(few)} sets of cells are too small, or have no controls, and are left out: {_named(few)}")
    units = cells.units()
    if not units:
        raise UserError(
            f"no perturbation of the training cells has the cells that are needed, and controls: see "
            f"--gaussian.perturbation-column {options.perturbation_column}, --gaussian.control {options.control}."
        )
    levels = sorted({unit.perturbation for unit in units})
    if features is None:
        size = len(levels)
        eye = np.eye(size, dtype=np.float32)
        return FittedFeatures(tuple(levels), eye, np.zeros(size, np.float32), eye), units
    known = set(features.names)
    if without := [level for level in levels if level not in known]:
        say(
            f"{len(without)} of {len(levels)} perturbations have no embedding in {features.source} and are left out of "
            f"training: {', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
        )
    fitted = fit_features(features, [level for level in levels if level in known], options.perturbation_column)
    return fitted, [unit for unit in units if unit.perturbation in known]


def _fit_shift(head: GaussianHead, cells: PerturbedCells, units: list[Unit], *, left_out: bool) -> None:
    """The ridge regression of all units, and the table of what each of them is centred at."""
    mean = {unit: _mean(cells, cells.rows_of[unit]) for unit in units}
    control = {context: _mean(cells, cells.controls(context)) for context in {unit.context for unit in units}}
    level = {name: number for number, name in enumerate(head.config.levels, start=1)}
    vectors = head.vectors_of_levels(torch.tensor([level[unit.perturbation] for unit in units])).double().numpy()
    if head.config.several_contexts:
        pooled = torch.from_numpy(np.stack([control[unit.context] for unit in units]))
        vectors = np.column_stack([vectors, head.basis.to_latent(pooled).double().numpy()])
    effects = np.stack([mean[unit] - control[unit.context] for unit in units])
    head.ridge.load_state_dict(RidgeShift.fit(vectors, effects).state_dict())
    shifts = _left_out_shifts(vectors, effects, units) if left_out else effects
    head.unit_shift.copy_(torch.from_numpy(shifts))


def _left_out_shifts(
    vectors: Float64[np.ndarray, "units d"], effects: Float64[np.ndarray, "units genes"], units: list[Unit]
) -> Float32[np.ndarray, "units genes"]:
    """Shift of each unit by a regression without its perturbation; where there is one alone, without its context."""
    perturbations = np.array([unit.perturbation for unit in units])
    names = perturbations if len(set(perturbations)) > 1 else np.array([unit.context for unit in units])
    found = np.zeros(effects.shape, dtype=np.float32)
    for name in set(names.tolist()):
        mine = names == name
        if mine.all():
            continue  # nothing else to learn from: no shift
        shift = RidgeShift.fit(vectors[~mine], effects[~mine])
        found[mine] = shift(torch.from_numpy(vectors[mine]).float()).numpy()
    return found


def _mean(cells: PerturbedCells, rows: np.ndarray) -> Float64[np.ndarray, " genes"]:
    return np.asarray(log_normalised(cells.counts[rows]).mean(axis=0), dtype=np.float64).ravel()


def _named(units: list[Unit]) -> str:
    names = [f"{unit.perturbation} ({unit.context})" if unit.context else unit.perturbation for unit in units]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
