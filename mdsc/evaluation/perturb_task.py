"""What is to be predicted, and what was: units (a context and a perturbation), their real cells, predicted cells."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Float64, Int64

from mdsc.data.condition_levels import near_names
from mdsc.data.genes import refuse_duplicates
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.errors import UserError
from mdsc.evaluation.perturb_expression import Matrix, log_expression, matrix_of
from mdsc.evaluation.perturb_units import Labels, Unit

if TYPE_CHECKING:
    from anndata import AnnData

SPLITS = ("train", "val", "test")
LEAST_CELLS = 5
"""Of a unit: the mean of fewer is mostly noise."""


@dataclass(frozen=True, eq=False)
class PerturbTask:
    """Real cells in log expression, and the parts they play."""

    expression: sp.csr_matrix
    """(cells, genes) float32: log1p of counts per 10,000."""
    genes: tuple[str, ...]
    perturbation: np.ndarray
    """(cells,) of str; `ctrl` for controls."""
    context: np.ndarray
    """(cells,) of str"""
    split: np.ndarray
    """(cells,) of str: train, val or test; what it says of control cells is of no account."""
    vectors: Mapping[str, Float64[np.ndarray, " features"]] | None = None
    """Gene embeddings, by gene or by perturbation."""
    gene_sets: Mapping[str, frozenset[str]] | None = None
    """Gene -> names of the sets that it is in."""
    labels: Labels = field(default_factory=Labels)
    """What the columns of a prediction are called."""

    @classmethod
    def of_anndata(
        cls,
        adata: "AnnData",
        *,
        perturbation_column: str = COLUMN,
        control_label: str = CONTROL,
        context_column: str | None = None,
        split_column: str = "split",
        predicted: Collection[Unit] | None = None,
        genes: Collection[str] | None = None,
        layer: str | None = None,
        vectors: Mapping[str, Float64[np.ndarray, " features"]] | None = None,
        gene_sets: Mapping[str, frozenset[str]] | None = None,
        name: str = "the real cells",
        say: Callable[[str], None] = lambda text: None,
    ) -> "PerturbTask":
        """adata: raw counts (or log expression) of training, test and control cells.

        predicted: the test units where there is no split column. genes: those to keep; counts are normalised over them.
        """
        labels = Labels(
            perturbation_column=perturbation_column, control_label=control_label, context_column=context_column
        )
        perturbation, context = labels.read(adata.obs, name)
        written = np.unique(adata.obs[perturbation_column].astype(str))
        if control_label not in written:
            near = near_names(control_label, written, "it has")
            raise UserError(
                f"--control-label: {name} has no control cells {control_label!r} in obs[{perturbation_column!r}]; "
                f"{near}."
            )
        names = tuple(map(str, adata.var_names))
        refuse_duplicates(names, name)
        columns = np.arange(len(names)) if genes is None else np.flatnonzero(np.isin(names, list(genes)))
        if split_column in adata.obs:
            split = adata.obs[split_column].astype(str).to_numpy(dtype=object)
            if wrong := sorted(set(split[perturbation != CONTROL]) - set(SPLITS)):
                raise UserError(
                    f"--split-column: {name} has {', '.join(wrong[:3])} in obs[{split_column!r}]; it takes "
                    f"{', '.join(SPLITS)}."
                )
        elif predicted is None:
            raise UserError(
                f"--split-column: {name} has no column obs[{split_column!r}]; {near_names(split_column, adata.obs)}."
            )
        else:
            split = _split_of(predicted, perturbation, context)
        matrix = matrix_of(adata, layer, name)
        # Columns that stay in order are not copied.
        matrix = matrix if len(columns) == len(names) else matrix[:, columns]
        expression, _ = log_expression(matrix, name)
        kept = tuple(np.array(names, dtype=object)[columns])
        task = cls(sp.csr_matrix(expression), kept, perturbation, context, split, vectors, gene_sets, labels)
        return task._checked(name, say)

    def _checked(self, name: str, say: Callable[[str], None]) -> "PerturbTask":
        """Without the units that cannot be scored; each is said."""
        keep = np.ones(len(self.perturbation), dtype=bool)
        with_control = set(self.context[self.perturbation == CONTROL])
        for context in sorted(set(self.context) - with_control):
            say(f"{name} has no control cells of {context}: it is left out")
            keep &= self.context != context
        for part in ("train", "test"):
            for unit in self._units(part):
                rows = self.rows(unit, part)
                if len(rows) < LEAST_CELLS and keep[rows].all():
                    say(f"{unit} has {len(rows)} {part} cells, and {LEAST_CELLS} are needed: it is left out")
                    keep[rows] = False
        # Controls of the test split are seen by all: they are what a prediction starts from.
        task = self if keep.all() else self._of_rows(np.flatnonzero(keep))
        if not task.units:
            raise UserError(f"{name} has no test perturbation with {LEAST_CELLS} cells and controls beside them.")
        if not task.training_units:
            raise UserError(f"{name} has no training perturbation: the baselines and the reference need one or more.")
        return task

    def _of_rows(self, rows: Int64[np.ndarray, " some"]) -> "PerturbTask":
        parts = {name: getattr(self, name)[rows] for name in ("perturbation", "context", "split")}
        return replace(self, expression=self.expression[rows], **parts)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Those with test cells."""
        return self._units("test")

    @cached_property
    def training_units(self) -> tuple[Unit, ...]:
        return self._units("train")

    @cached_property
    def seen(self) -> "PerturbTask":
        """The training and control cells alone, copied: all that a baseline is given."""
        return self._of_rows(np.flatnonzero((self.perturbation == CONTROL) | (self.split == "train")))

    def _units(self, part: str) -> tuple[Unit, ...]:
        chosen = (self.perturbation != CONTROL) & (self.split == part)
        pairs = set(zip(self.context[chosen], self.perturbation[chosen], strict=True))
        return tuple(sorted(Unit(*pair) for pair in pairs))

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], np.ndarray]:
        """By context, perturbation and part; controls have no part."""
        found: dict[tuple[str, str, str], list[int]] = {}
        part = np.where(self.perturbation == CONTROL, "", self.split)
        for row, key in enumerate(zip(self.context, self.perturbation, part, strict=True)):
            found.setdefault(key, []).append(row)
        return {key: np.array(rows, dtype=np.int64) for key, rows in found.items()}

    def rows(self, unit: Unit, part: str = "test") -> Int64[np.ndarray, " cells"]:
        return self._rows.get((unit.context, unit.perturbation, part), np.zeros(0, dtype=np.int64))

    def controls(self, context: str, split: str | None = None) -> Int64[np.ndarray, " cells"]:
        """Rows of the real control cells; of all parts by default."""
        rows = self._rows[context, CONTROL, ""]
        return rows if split is None else rows[self.split[rows] == split]

    def cells(self, unit: Unit, part: str = "test") -> Float32[np.ndarray, "cells genes"]:
        return self.dense(self.rows(unit, part))

    def dense(self, rows: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, "cells genes"]:
        return self.expression[rows].toarray()

    def mean(self, unit: Unit, part: str = "test") -> Float64[np.ndarray, " genes"]:
        return mean_expression(self.expression[self.rows(unit, part)])

    def reference(self, context: str) -> Float64[np.ndarray, " genes"]:
        """Mean of the REAL control cells, whatever a prediction holds."""
        return self._references[context]

    @cached_property
    def _references(self) -> dict[str, np.ndarray]:
        contexts = sorted({key[0] for key in self._rows if key[1] == CONTROL})
        return {name: mean_expression(self.expression[self.controls(name)]) for name in contexts}


class UnitCells(Mapping[Unit, np.ndarray]):
    """Cells by unit, made dense when they are asked for: a file of them may be large."""

    def __init__(self, matrix: Matrix, rows: Mapping[Unit, np.ndarray]):
        self.matrix, self.rows_of = matrix, dict(rows)

    def __getitem__(self, unit: Unit) -> np.ndarray:
        cells = self.matrix[self.rows_of[unit]]
        return np.asarray(cells.toarray() if sp.issparse(cells) else cells, dtype=np.float32)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.rows_of)

    def __len__(self) -> int:
        return len(self.rows_of)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted cells of units, in log expression over the task's genes."""

    name: str
    cells: Mapping[Unit, Float32[np.ndarray, "cells genes"]]
    means: Mapping[Unit, Float64[np.ndarray, " genes"]] = field(default_factory=dict)
    """Pseudobulks, where they are not the means of the cells. A unit in neither is not predicted."""

    @classmethod
    def of_anndata(
        cls,
        adata: "AnnData",
        task: PerturbTask,
        layer: str | None = None,
        *,
        means_layer: str | None = None,
        name: str = "the prediction",
        say: Callable[[str], None] = lambda text: None,
    ) -> "Prediction":
        """Genes by name; control cells are left aside. means_layer: pseudobulks are the means of this layer."""
        rows = predicted_rows(adata, task.labels, name)
        lacking = [unit for unit in task.units if unit not in rows]
        if lacking:
            raise UserError(
                f"{name} has no cells of {_some(lacking)}, of {len(task.units)} test perturbations: predict all of "
                "them; what is left out could be what is hardest."
            )
        if other := sorted(rows.keys() - set(task.units)):
            unknown = set(other) - set(task.training_units)
            kind = "are not in the real cells" if unknown else "are training perturbations"
            say(f"{name}: cells of {_some(sorted(unknown) or other)} are not scored: they {kind}")
        if controls := adata.n_obs - sum(map(len, rows.values())):
            say(f"{name}: its {controls:,} control cells are left aside; all effects are taken from the REAL controls")
        columns = _columns(adata, task.genes, name)
        chosen = np.concatenate([rows[unit] for unit in task.units])
        places = np.split(np.arange(len(chosen)), np.cumsum([len(rows[unit]) for unit in task.units])[:-1])
        rows_of = dict(zip(task.units, places, strict=True))
        values, converted = log_expression(
            matrix_of(adata, layer, name, "--predicted-layer")[chosen][:, columns], name, float(task.expression.mean())
        )
        if converted:
            say(f"{name}: the values are raw counts, and are converted to log1p of counts per 10,000")
        means: dict[Unit, np.ndarray] = {}
        if means_layer is not None:
            matrix = matrix_of(adata, means_layer, name, "--means-layer")[chosen][:, columns]
            expected = UnitCells(
                log_expression(matrix, f"{name}, layer {means_layer}", float(task.expression.mean()))[0], rows_of
            )
            means = {unit: expected[unit].mean(axis=0, dtype=np.float64) for unit in task.units}
        return cls(name, UnitCells(values, rows_of), means)

    def mean(self, unit: Unit) -> Float64[np.ndarray, " genes"] | None:
        if unit in self.means:
            return self.means[unit]
        return self.cells[unit].mean(axis=0, dtype=np.float64) if unit in self.cells else None


def mean_expression(expression: sp.csr_matrix) -> Float64[np.ndarray, " genes"]:
    """Over cells, summed in double precision."""
    total = np.bincount(expression.indices, weights=expression.data, minlength=expression.shape[1])
    return total / max(1, expression.shape[0])


def _split_of(predicted: Collection[Unit], perturbation: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Test: the predicted perturbations; where none would be left to train on, the predicted units alone."""
    chosen = np.isin(perturbation, [unit.perturbation for unit in predicted])
    if (chosen | (perturbation == CONTROL)).all():
        pairs = {(unit.context, unit.perturbation) for unit in predicted}
        chosen = np.array([pair in pairs for pair in zip(context, perturbation, strict=True)])
    return np.where(chosen & (perturbation != CONTROL), "test", "train").astype(object)


def predicted_rows(adata: "AnnData", labels: Labels, name: str) -> dict[Unit, np.ndarray]:
    """Rows of each perturbed unit of a prediction, whose controls are `ctrl` or what they are called in the real file.

    A prediction may have the column `perturbation`, as sample.py writes it, whatever the real cells call theirs.
    """
    if labels.perturbation_column not in adata.obs and COLUMN in adata.obs:
        labels = replace(labels, perturbation_column=COLUMN)
    found: dict[Unit, list[int]] = {}
    for row, (perturbation, context) in enumerate(zip(*labels.read(adata.obs, name), strict=True)):
        if perturbation != CONTROL:
            found.setdefault(Unit(context, perturbation), []).append(row)
    if not found:
        raise UserError(f"{name} has no cells but controls in obs[{labels.perturbation_column!r}].")
    return {unit: np.array(rows, dtype=np.int64) for unit, rows in found.items()}


def _columns(adata: "AnnData", genes: tuple[str, ...], name: str) -> np.ndarray:
    names = list(map(str, adata.var_names))
    refuse_duplicates(names, name)
    place = {gene: column for column, gene in enumerate(names)}
    if lacking := [gene for gene in genes if gene not in place]:
        raise UserError(f"{name} lacks {len(lacking):,} of {len(genes):,} genes of the task, e.g. {lacking[0]}.")
    return np.array([place[gene] for gene in genes])


def _some(units: Collection[Unit]) -> str:
    names = [str(unit) for unit in list(units)[:3]]
    return ", ".join(names) + (f" and {len(units) - 3} more" if len(units) > 3 else "")
