"""Training batches of the Gaussian head: sets of perturbed cells, each with unperturbed cells of its context.

A batch is a pure function of (seed, step): a set's unit comes from a shuffled list of all units, controls included, and
its cells from a keyed order. So any number of processes, and a run that goes on, see the same cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mdsc.data.cell_tensors import CellTensors
from mdsc.data.keyed_streams import Purpose, permutation, stream
from mdsc.data.log_expression import log_normalised
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.matching import match
from mdsc.perturbation.perturbed_cells import PerturbedCells, Unit

CHUNK = 2048
"""Cells whose expression is dense at once."""


@dataclass(frozen=True)
class PairedBatch(CellTensors):
    """Consecutive `set_size` cells are of one set."""

    latents: Float[Tensor, "batch k"]
    """Of perturbed cells, or of control cells where level is 0."""
    cells: Float[Tensor, "batch k"]
    """Of an unperturbed cell of the same context, another one where level is 0."""
    pooled: Float[Tensor, "batch k"]
    """Mean over all unperturbed cells of the context and batch."""
    level: Int[Tensor, " batch"]
    """Of the perturbation, 1, 2, ...; 0 for control."""
    unit: Int[Tensor, " batch"]
    """Row of the head's table of shifts; -1 for control."""
    cell_index: Int[Tensor, " batch"]
    """Place in the global batch."""
    expression: Float[Tensor, "batch genes"]
    """Log expression of the perturbed cells, for the decoder; without columns where there is none."""
    pooled_expression: Float[Tensor, "batch genes"]
    """As `pooled`, in log expression; likewise."""


class LatentCells:
    """Cells with their latents, computed when they are first asked for: the head's basis has to be there by then."""

    def __init__(self, cells: PerturbedCells, head: GaussianHead):
        self.cells = cells
        self.head = head
        self.basis = head.basis

    @cached_property
    def _table(self) -> Float[Tensor, "cells k"] | None:
        """Of all cells; None without PCA, where it would be all of the dense expression."""
        if self.head.config.pca_size is None:
            return None
        parts = [np.arange(first, min(first + CHUNK, len(self.cells))) for first in range(0, len(self.cells), CHUNK)]
        return torch.cat([self._computed(rows) for rows in parts])

    @torch.no_grad()
    def _computed(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows k"]:
        return self.basis.to_latent(self.expression(rows)).cpu()

    def expression(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows genes"]:
        """On the head's device."""
        return torch.from_numpy(self.cells.expression(rows)).to(self.head.device)

    def latents(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows k"]:
        """On the host."""
        return self._computed(rows) if self._table is None else self._table[torch.from_numpy(rows)]

    def mean_expression(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, " genes"]:
        mean = log_normalised(self.cells.counts[rows]).mean(axis=0)
        return torch.from_numpy(np.asarray(mean, dtype=np.float32).ravel())

    @cached_property
    def pooled_expression(self) -> dict[tuple[str, str | None], Float[Tensor, " genes"]]:
        """Mean of the control cells by (context, batch), and over all batches by (context, None)."""
        found = {}
        for context in self.cells.contexts:
            rows = self.cells.controls(context)
            if not len(rows):
                continue
            batches = self.cells.batch[rows]
            for batch in [None, *sorted(set(batches.tolist()))]:
                found[context, batch] = self.mean_expression(rows if batch is None else rows[batches == batch])
        return found

    @cached_property
    @torch.no_grad()
    def pooled(self) -> dict[tuple[str, str | None], Float[Tensor, " k"]]:
        """Their latents: a PCA is affine, so these are the means of the cells' latents."""
        means = self.pooled_expression
        latents = self.basis.to_latent(torch.stack(list(means.values())).to(self.head.device)).cpu()
        return dict(zip(means, latents, strict=True))

    def pooled_of(
        self, context: str, batches: np.ndarray
    ) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows genes"]]:
        """For cells of these batches, as latents and as log expression; of a batch without control cells, that of the
        context."""
        keys = [(context, batch) if (context, batch) in self.pooled else (context, None) for batch in batches.tolist()]
        return tuple(torch.stack([table[key] for key in keys]) for table in (self.pooled, self.pooled_expression))


class PairedBatches:
    """Batches of training. `units` are those of the head's table of shifts."""

    def __init__(
        self,
        latent_cells: LatentCells,
        units: list[Unit],
        *,
        matching: str,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        head, cells = latent_cells.head, latent_cells.cells
        self.latent_cells, self.units, self.matching, self.seed = latent_cells, units, matching, seed
        self.set_size = head.config.set_size
        self.sets = range(rank, global_batch_size // self.set_size, world_size)
        self.num_sets = global_batch_size // self.set_size
        self.level = {name: number for number, name in enumerate(head.config.levels, start=1)}
        self.number = {unit: number for number, unit in enumerate(units)}
        contexts = sorted({unit.context for unit in units})
        self.drawn = [*units, *(Unit(context, cells.control) for context in contexts)]

    def iterate(self, start_step: int = 0, device: torch.device | None = None) -> Iterator[PairedBatch]:
        """This process's share of global steps `start_step`, `start_step` + 1, ..., without end."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> PairedBatch:
        parts = [self._set(step, number) for number in self.sets]
        return PairedBatch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def addresses(self, step: int, places: list[int]) -> list[str]:
        """Perturbation and context of these cells of a global batch."""
        units = [self.drawn[self._drawn(step, place // self.set_size)] for place in places]
        return [f"{unit.perturbation} {unit.context}".strip() for unit in units]

    def _drawn(self, step: int, number: int) -> int:
        epoch, place = divmod(step * self.num_sets + number, len(self.drawn))
        return int(permutation(stream(Purpose.UNITS, self.seed, epoch), len(self.drawn))[place])

    def _set(self, step: int, number: int) -> tuple[Tensor, ...]:
        unit, cells, size = self.drawn[self._drawn(step, number)], self.latent_cells.cells, self.set_size
        is_control = unit.perturbation == cells.control
        own, controls = cells.rows_of[unit], cells.controls(unit.context)
        order = permutation(stream(Purpose.SET_CELLS, self.seed, step, number), len(own))
        rows = own[np.resize(order, size)]
        if is_control:  # no cell is told of itself, unless there are too few
            others = np.setdiff1d(controls, rows)
            controls = others if len(others) else controls
        random = np.random.Generator(stream(Purpose.MATCHING, self.seed, step, number))
        if self.matching == "ot":
            controls = random.choice(controls, min(size, len(controls)), replace=False)
        latents = self.latent_cells.latents(rows)
        needs_latents = self.matching == "ot"
        matched = match(
            self.latent_cells.latents(controls).numpy() if needs_latents else np.zeros((len(controls), 1), np.float32),
            latents.numpy() if needs_latents else np.zeros((size, 1), np.float32),
            self.matching,
            cells.batch[controls],
            cells.batch[rows],
            rng=random,
        )
        has_decoder = self.latent_cells.head.decoder is not None
        expression = cells.expression(rows) if has_decoder else np.zeros((size, 0), dtype=np.float32)
        pooled, pooled_expression = self.latent_cells.pooled_of(unit.context, cells.batch[rows])
        return (
            latents,
            self.latent_cells.latents(controls[matched]),
            pooled,
            torch.full((size,), self.level.get(unit.perturbation, 0)),
            torch.full((size,), self.number.get(unit, -1)),
            number * size + torch.arange(size),
            torch.from_numpy(expression),
            pooled_expression if has_decoder else torch.zeros(size, 0),
        )
