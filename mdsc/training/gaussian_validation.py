"""Validation of the Gaussian head: perturbed cells are generated and compared with real ones that it has not seen."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mdsc.data.keyed_streams import Purpose, permutation, stream
from mdsc.data.log_expression import log_normalised
from mdsc.diffusion.keyed_random import Stream
from mdsc.errors import UserError
from mdsc.perturbation.generation import DrawOptions, draw_latents, keyed_normal
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.paired_batches import LatentCells
from mdsc.perturbation.perturbed_cells import PerturbedCells, Unit
from mdsc.perturbation.set_losses import energy_unbiased
from mdsc.perturbation.targets import noised, x0_of

SEED = 0
"""What is drawn must not follow the run's seed: runs are compared by these numbers."""
NUM_CELLS = 128
"""Of a unit, generated and real, at most."""
TIMES = (0.1, 0.5, 0.9)
"""Of the noise path, at which the error of the noise is told beside its floor."""


class GaussianValidation:
    """Scores over the units of the validation cells. Control cells of training are what cells are generated from."""

    def __init__(
        self,
        training: LatentCells,
        validation: PerturbedCells,
        *,
        most_cells: int,
        process: int = 0,
        num_processes: int = 1,
    ):
        """`most_cells`: real cells in all, at most. UserError where no unit has cells to compare with."""
        self.training = training
        self.cells = LatentCells(validation, training.head)
        known, controls = set(training.head.vectors.names), training.cells.controls
        own = [
            unit
            for unit, rows in validation.rows_of.items()
            if unit.perturbation in known and len(rows) >= 2 and len(controls(unit.context))
        ]
        order = permutation(stream(Purpose.VALIDATION_ROWS, SEED), len(own))
        self.units = [own[place] for place in order][: max(most_cells // 2, 1)]
        if not self.units:
            raise UserError(
                "there are no validation cells of a perturbation that the model can tell: raise "
                "--data.validation-fraction, or prepare the data with a split `val`."
            )
        self.most = int(np.clip(most_cells // len(self.units), 2, NUM_CELLS))
        self.mine = range(process, len(self.units), num_processes)
        self.rounds = -(-len(self.units) // num_processes)

    @torch.no_grad()
    def scores(
        self,
        head: GaussianHead,
        options: DrawOptions,
        sum_over_processes: Callable[[Tensor], Tensor],
        wants_stop: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Means over units.

        energy: energy distance of generated and real latents, unbiased, 0 for equal laws. pearson_delta: over genes, of
        the mean change against control; pearson_delta_pert: against the mean of the training perturbations.
        epsilon_gap_at_U: the floor of a denoiser that knows no conditions, less the error, as a share of the floor.
        """
        names = ("energy", "pearson_delta", "pearson_delta_pert", *(f"epsilon_gap_at_{time:g}" for time in TIMES))
        totals = torch.zeros(2, len(names), dtype=torch.float64, device=head.device)
        for place in range(self.rounds):
            if sum_over_processes(totals.new_tensor([wants_stop()])).any():
                return None
            if place < len(self.mine):
                found = self._of_unit(head, self.units[self.mine[place]], options)
                values = torch.tensor(found, dtype=torch.float64, device=head.device)
                totals += torch.stack([values.nan_to_num(nan=0.0), (~values.isnan()).double()])
        sums, numbers = sum_over_processes(totals)
        means = (sums / numbers).tolist()  # NaN of what no unit has
        return {f"validation_{name}": mean for name, mean in zip(names, means, strict=True)}

    def _of_unit(self, head: GaussianHead, unit: Unit, options: DrawOptions) -> list[float]:
        number = self.units.index(unit)
        rows = self.cells.cells.rows_of[unit]
        rows = rows[permutation(stream(Purpose.VALIDATION_BATCH, SEED, number), len(rows))[: self.most]]
        controls = self.training.cells.controls(unit.context)
        chosen = controls[np.resize(permutation(stream(Purpose.MATCHING, SEED, number), len(controls)), len(rows))]
        real = self.cells.latents(rows).to(head.device)
        cells = self.training.latents(chosen).to(head.device)
        around = self.training.pooled_of(unit.context, self.training.cells.batch[chosen])
        pooled, centre = (tensor.to(head.device) for tensor in around)
        whole = self.training.pooled[unit.context, None].to(head.device).expand(len(rows), -1)
        vectors = head.vectors_of((unit.perturbation,)).expand(len(rows), -1)
        is_perturbed = torch.ones(len(rows), dtype=torch.bool, device=head.device)
        left_out = head.left_out(centre := centre + head.shift(vectors, is_perturbed, whole))
        centre = head.basis.to_latent(centre)
        # Even ones: no two cells have opposite noise, which would be further apart than two cells are.
        keys = 2 * (number * NUM_CELLS + torch.arange(len(rows), device=head.device))
        drawn = draw_latents(head, vectors, is_perturbed, pooled, cells, centre, options=options, seed=SEED, keys=keys)
        energy = energy_unbiased(drawn[None], real[None]).item()
        predicted = head.to_genes(drawn, left_out).double().mean(dim=0).cpu().numpy()
        true = self._mean(self.cells.cells, rows)
        deltas = [
            _correlation(predicted - reference, true - reference)
            for reference in (self._control_mean[unit.context], self._perturbed_mean[unit.context])
        ]
        condition = head.condition(vectors, is_perturbed, pooled, cells)
        gaps = [self._gap(head, time, real - centre, condition, keys) for time in TIMES]
        return [energy, *deltas, *gaps]

    def _gap(
        self, head: GaussianHead, time: float, x0: Float[Tensor, "cells k"], condition: Tensor, keys: Tensor
    ) -> float:
        """Share of the error of the best denoiser without conditions, of independent normal latents, that is gone."""
        size = head.config.set_size if head.config.denoiser == "set" else 1
        number = len(x0) // size * size
        if not number:
            return float("nan")
        x0, condition = x0[:number], condition[:number]
        alpha, sigma = noise_path(head.config.noise).levels(torch.full((number,), time, device=x0.device))
        noise = keyed_normal(
            Stream.NOISE, SEED, int(1000 * time), keys[:number, None], torch.arange(x0.shape[1], device=x0.device)
        )
        xt = noised(x0, noise, alpha, sigma)
        x0_hat = x0_of(head(xt, alpha, sigma, condition, size).output, xt, alpha, sigma, head.config.target)
        error = (alpha / sigma)[:, None] * (x0_hat - x0)  # of the noise that x0-hat stands for
        variance = self._latent_variance.to(x0.device)
        ratio = (sigma[0] / alpha[0]).square()
        return 1 - (error.square().mean() / (variance / (variance + ratio)).mean()).item()

    @cached_property
    def _latent_variance(self) -> Float[Tensor, " k"]:
        cells = self.training.cells
        rows = permutation(stream(Purpose.VALIDATION_BATCH, SEED, 0, 1), len(cells))[:2000]
        return self.training.latents(rows).var(dim=0)

    @cached_property
    def _control_mean(self) -> dict[str, Float64[np.ndarray, " genes"]]:
        cells = self.training.cells
        contexts = {unit.context for unit in self.units}
        return {context: self._mean(cells, cells.controls(context)) for context in contexts}

    @cached_property
    def _perturbed_mean(self) -> dict[str, Float64[np.ndarray, " genes"]]:
        """Mean of the centroids of the training perturbations; by context, where one has several."""
        cells, found = self.training.cells, {}
        centroids = {unit: self._mean(cells, cells.rows_of[unit]) for unit in cells.units()}
        for context in {unit.context for unit in self.units}:
            own = [mean for unit, mean in centroids.items() if unit.context == context]
            found[context] = np.mean(own if len(own) > 1 else list(centroids.values()), axis=0)
        return found

    @staticmethod
    def _mean(cells: PerturbedCells, rows: np.ndarray) -> Float64[np.ndarray, " genes"]:
        return np.asarray(log_normalised(cells.counts[rows]).mean(axis=0), dtype=np.float64).ravel()


def _correlation(one: Float64[np.ndarray, " genes"], other: Float64[np.ndarray, " genes"]) -> float:
    """NaN where one of them does not vary."""
    if one.std() < 1e-12 or other.std() < 1e-12:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
