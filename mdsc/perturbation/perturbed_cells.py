"""Cells in memory with what was done to them, in log expression: what the Gaussian head is fitted to and reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64

from mdsc.config.schema import GaussianConfig
from mdsc.data.condition_levels import near_names
from mdsc.data.log_expression import log_normalised
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.shards import ShardFolder
from mdsc.data.validation_split import split_rows
from mdsc.errors import UserError

LEAST_CELLS = 5
"""Of a perturbation in a context: of fewer, no distance to a set of cells can be told."""
VALIDATION = "val"


@dataclass(frozen=True, order=True)
class Unit:
    """Cells that had the same done to them in the same context: a set, as losses and scores have them."""

    context: str
    perturbation: str


@dataclass(frozen=True, eq=False)
class PerturbedCells:
    counts: sp.csr_matrix
    """(cells, genes) int32."""
    perturbation: np.ndarray
    """(cells,) of str; the control's name is `control`."""
    context: np.ndarray
    """(cells,) of str: cell type and the like; "" where there is none."""
    batch: np.ndarray
    """(cells,) of str; "" where it is not known."""
    control: str

    def __len__(self) -> int:
        return self.counts.shape[0]

    def expression(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows genes"]:
        """Log expression, dense."""
        return log_normalised(self.counts[rows]).toarray().astype(np.float32)

    @cached_property
    def rows_of(self) -> dict[Unit, Int64[np.ndarray, " rows"]]:
        """The cells of each unit, controls included, in the order of units."""
        names = np.char.add(np.char.add(self.context.astype(str), "\n"), self.perturbation.astype(str))
        found, place = np.unique(names, return_inverse=True)
        order, starts = np.argsort(place, kind="stable"), np.searchsorted(np.sort(place), np.arange(len(found) + 1))
        units = (Unit(*name.split("\n")) for name in found.tolist())
        return dict(sorted((unit, order[a:b]) for unit, a, b in zip(units, starts[:-1], starts[1:], strict=True)))

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        return tuple(sorted({unit.context for unit in self.rows_of}))

    def controls(self, context: str) -> Int64[np.ndarray, " rows"]:
        return self.rows_of.get(Unit(context, self.control), np.array([], dtype=np.int64))

    def units(self, least: int = LEAST_CELLS) -> list[Unit]:
        """Perturbed units with that many cells, and controls to compare them with."""
        return [
            unit
            for unit, rows in self.rows_of.items()
            if unit.perturbation != self.control and len(rows) >= least and len(self.controls(unit.context)) >= least
        ]

    def select(self, rows: np.ndarray) -> "PerturbedCells":
        return PerturbedCells(
            self.counts[rows], self.perturbation[rows], self.context[rows], self.batch[rows], self.control
        )

    def require_controls(self, where: str, flag: str) -> None:
        """UserError if no cell is a control, with the names that are there."""
        if (self.perturbation == self.control).any():
            return
        near = near_names(self.control, sorted(set(self.perturbation.tolist())), "it has")
        raise UserError(f"{where} has no control cells: {flag} is {self.control!r}, and {near}.")


def read_perturbed(folder: ShardFolder, options: GaussianConfig, split: str) -> PerturbedCells:
    """All cells of a split of a folder of shards, in its order."""
    columns = [options.perturbation_column, *options.context_columns]
    columns += [] if options.batch_column is None else [options.batch_column]
    for column in columns:
        if column not in folder.condition_columns:
            raise UserError(
                f"--data.dir {folder.path} has no condition column {column!r}: "
                f"{near_names(column, folder.condition_columns, 'it has')}.\n"
                "Name another (--gaussian.perturbation-column, --gaussian.context-columns, --gaussian.batch-column)."
            )
    return _read(folder, folder.row_groups(split), options, columns)


def _read(
    folder: ShardFolder, refs: Sequence[RowGroupRef], options: GaussianConfig, columns: Sequence[str]
) -> PerturbedCells:
    groups = [folder.read(ref, tuple(dict.fromkeys(columns)), with_cell_ids=False) for ref in refs]
    width = len(folder.vocabulary)
    blocks = [sp.csr_matrix((g.counts, g.gene_index, g.indptr), (len(g.indptr) - 1, width)) for g in groups]

    def told(names: Sequence[str]) -> np.ndarray:
        parts = [np.concatenate([group.conditions[name] for group in groups]).astype(str) for name in names]
        return np.array(["; ".join(cell) for cell in zip(*parts, strict=True)]) if parts else _nothing(blocks)

    batches = [] if options.batch_column is None else [options.batch_column]
    return PerturbedCells(
        sp.vstack(blocks, format="csr"),
        told([options.perturbation_column]),
        told(options.context_columns),
        told(batches),
        options.control,
    )


def _nothing(blocks: Sequence[sp.csr_matrix]) -> np.ndarray:
    return np.full(sum(block.shape[0] for block in blocks), "", dtype="<U1")


def training_and_validation(
    folder: ShardFolder, options: GaussianConfig, fraction: float
) -> tuple[PerturbedCells, PerturbedCells]:
    """The cells that are trained on, and those that validate: the split `val`, else a share of the training cells.

    With a split `val` its perturbations are new to the model; the share is of known ones. Controls of training stand
    for both.
    """
    training = read_perturbed(folder, options, "train")
    training.require_controls(f"--data.dir {folder.path}", "--gaussian.control")
    if VALIDATION in folder.splits:
        return training, read_perturbed(folder, options, VALIDATION)
    kept = np.ones(len(training), dtype=bool)
    first = 0
    for ref in folder.row_groups("train"):
        kept[first + split_rows(ref, fraction)[1]] = False
        first += ref.rows
    return training.select(np.flatnonzero(kept)), training.select(np.flatnonzero(~kept))
