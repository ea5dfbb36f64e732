"""A perturbation task: Perturb-seq cells with a split, raw counts of the chosen genes, some controls as reference.

`perturbation_task` takes and gives an AnnData in memory; `mdsc prepare perturbation` writes what it gives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mdsc.data.condition_levels import near_names
from mdsc.data.level_features import LevelFeatures
from mdsc.data.perturbations import COLUMN, CONTROL, combined_vectors
from mdsc.errors import UserError
from mdsc.prep.perturbation_genes import variable_genes
from mdsc.prep.perturbation_names import cells_of, counted
from mdsc.prep.perturbation_source import PerturbedCells, SourceColumns, read_cells
from mdsc.prep.perturbation_splits import SPLITS, PerturbationSplit, check_parts, split_by_rule, split_of_file

if TYPE_CHECKING:
    from anndata import AnnData

SEVERAL = ("control_label", "split", "held_out")
REFERENCE_KEY = b"mdsc control reference"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    perturbation_column: str | None = None
    """Column of obs that tells what was perturbed; by default `condition` (GEARS) or `perturbation` (scPerturb)."""
    control_label: tuple[str, ...] = ()
    """What control cells are called there; by default ctrl, control, non-targeting, ..., and the guides of GSE90546
    that cut nothing."""
    cell_type_column: str | None = None
    """Column of obs with the cells' types; by default `cell_type`, where there is one."""
    batch_column: str | None = None
    """Column of obs with the cells' batches; by default `batch`, where there is one."""
    joined_by: str | None = None
    """What joins the genes of a pair, beside "+": "_" in scPerturb's files."""
    no_guide: Literal["control", "leave-out"] = "control"
    """What the cells are that GSE90546 tells no guide for ("*")."""
    layer: str | None = None
    """Where the raw counts are; by default layers["counts"], X or raw, the first that holds counts."""
    num_genes: int | None = None
    """Keep so many genes: those measured that were perturbed, and the most variable ones of the training cells (needs
    scanpy: pip install mdsc[demo]). By default all."""
    min_cells: int = 5
    """Perturbations of fewer cells are left out."""
    control_reference: float = 0.2
    """Share of the control cells of each cell type and batch that are of split "test": controls that training has not
    seen, to compare with. 0: all are for training, as with GEARS."""
    split: tuple[str, ...] = ("gears-simulation",)
    """gears-simulation; adamson-81 or adamson-86 (the splits in print); leave-out GENE...; folds (--num-folds, --fold);
    leave-one-out (--fold); cell-type (--held-out)."""
    split_seed: int = 1
    """Seed of the split."""
    num_folds: int = 5
    """Of --split folds: parts of the perturbed genes, one of which is for test."""
    fold: int = 0
    """Which part, from 0; with leave-one-out, which gene in alphabetical order."""
    val_fraction: float = 0.1
    """Of --split leave-out, folds and leave-one-out: share of the other genes for validation, rounded down."""
    held_out: tuple[str, ...] = ()
    """Of --split cell-type: the types whose perturbed cells are for test. Their controls stay."""
    split_file: Path | None = None
    """JSON of one's own: {"train": [...], "val": [...], "test": [...]}."""
    split_column: str | None = None
    """Column of obs with train, val or test for each cell."""

    def __post_init__(self) -> None:
        for flag, share in (("control-reference", self.control_reference), ("val-fraction", self.val_fraction)):
            if not 0 <= share < 1:
                raise UserError(f"--{flag} {share} is no share: give 0 or more and less than 1.")
        if self.split_file is not None and self.split_column is not None:
            raise UserError("--split-file and --split-column both give the split: give one of them.")
        if self.num_genes is not None and self.num_genes < 1:
            raise UserError(f"--num-genes {self.num_genes}: give 1 or more.")
        is_by_type = self.split[:1] == ("cell-type",) and self.split_file is None and self.split_column is None
        if is_by_type != bool(self.held_out):
            raise UserError("--split cell-type and --held-out TYPE belong together: give both or none.")

    @property
    def columns(self) -> SourceColumns:
        return SourceColumns(
            self.perturbation_column, self.cell_type_column, self.batch_column, self.split_column,
            self.control_label, self.joined_by, self.layer, self.no_guide,
        )  # fmt: skip


def perturbation_task(
    source: "AnnData | Path | str",
    features: LevelFeatures | None = None,
    say: Callable[[str], None] = print,
    **options: object,
) -> "AnnData":
    """The task of an AnnData (which stays as it is), an h5ad file or a folder of GEO's files.

    options: the fields of `TaskOptions`. features: gene embeddings; perturbations that they lack are left out of
    validation and test. `say` is told what is left out.

    Gives X raw counts (CSR int32) of the chosen genes, var_names symbols, and obs with `perturbation` (canonical names,
    ctrl), `split` (train, val, test) and, where the source has them, `cell_type` and `batch`. uns["task"] says what was
    made of what. Raises UserError where there are no controls, no counts, or nothing to train on or to test.
    """
    # In Python one name is most naturally given alone.
    several = {name: (value,) for name, value in options.items() if name in SEVERAL and isinstance(value, str)}
    source = Path(source) if isinstance(source, str) else source
    return make_task(source, TaskOptions(**(options | several)), features, say)  # type: ignore[arg-type]


def make_task(
    source: "AnnData | Path", options: TaskOptions, features: LevelFeatures | None, say: Callable[[str], None]
) -> "AnnData":
    """`perturbation_task` of options in one piece."""
    import pandas as pd
    from anndata import AnnData

    cells = read_cells(source, options.columns, say)
    rule = _split(cells, options)
    for note in rule.notes:
        say(note)
    if absent := sorted(set(rule.split_of) - set(cells.perturbation)):
        say(f"the split ({rule.about}) names {len(absent):,} perturbations of no cell: {counted(absent)}")
    split = _split_of_cells(cells, rule, options)
    left_out: dict[str, str] = {}
    lacking = _without_vector(cells, features)
    _leave_out(cells, split, lacking, options.min_cells, left_out, say)
    perturbed = cells.perturbation != CONTROL
    parts = {part: int((perturbed & (split == part)).sum()) for part in SPLITS}
    check_parts(parts, rule.about, say)
    if not (~perturbed & (split == "train")).any():
        raise UserError(f"{cells.source}: no control cell is for training ({rule.about}): models start from them.")

    rows = np.flatnonzero(split != "")
    counts, kept_split = cells.counts if len(rows) == len(split) else cells.counts[rows], split[rows]
    genes = variable_genes(counts, kept_split == "train", cells.genes, cells.perturbation[rows], options.num_genes, say)
    obs = pd.DataFrame({COLUMN: cells.perturbation[rows]}, index=cells.names[rows])
    for name, values in (("cell_type", cells.cell_type), ("batch", cells.batch)):
        if values is not None:
            obs[name] = values[rows]
    obs["split"] = kept_split
    if not obs.index.is_unique:
        raise UserError(
            f"{cells.source} has several cells of one name: adata.obs_names_make_unique() tells them apart."
        )
    task = AnnData(
        counts if len(genes) == len(cells.genes) else counts[:, genes],
        obs=obs.astype("category"),
        var=pd.DataFrame(index=[cells.genes[gene] for gene in genes]),
    )
    task.uns["task"] = {
        "source": cells.source,
        "split": rule.about,
        "control_reference": 0.0 if options.split_column else options.control_reference,
        "cells": {part: cells_of(cells.perturbation[split == part]) for part in SPLITS},
        "left_out": left_out,
        "without_embedding": lacking,
    }
    return task


def _split(cells: PerturbedCells, options: TaskOptions) -> PerturbationSplit:
    if options.split_column is not None:
        return PerturbationSplit({}, f"column {options.split_column}")
    if options.split_file is not None:
        return PerturbationSplit(split_of_file(options.split_file), str(options.split_file))
    rule = split_by_rule(
        options.split,
        cells.conditions,
        seed=options.split_seed,
        num_folds=options.num_folds,
        fold=options.fold,
        val_fraction=options.val_fraction,
    )
    return replace(rule, about=" ".join([rule.about, *options.held_out]))


def _split_of_cells(cells: PerturbedCells, rule: PerturbationSplit, options: TaskOptions) -> np.ndarray:
    """(cells,) of train, val, test; "" where the split has no place for the perturbation."""
    if cells.split is not None:
        if unknown := sorted(set(cells.split) - {*SPLITS}):
            raise UserError(
                f"{cells.source}: column {options.split_column!r} (--split-column) has {counted(unknown)}: the splits "
                "are called train, val and test."
            )
        return cells.split.copy()
    split = np.array([rule.split_of.get(name, "") for name in cells.perturbation], dtype=object)
    is_control = cells.perturbation == CONTROL
    if options.held_out:
        if cells.cell_type is None:
            raise UserError(
                f"{cells.source} tells no cell types for --held-out: name their column, --cell-type-column."
            )
        types = sorted(set(cells.cell_type))
        for name in options.held_out:
            if name not in types:
                raise UserError(f"--held-out {name}: no cell is of this type; {near_names(name, types, 'there are')}.")
        split[np.isin(cells.cell_type.astype(str), options.held_out) & ~is_control] = "test"
    split[is_control] = "train"
    split[_reference(cells, is_control, options.control_reference)] = "test"
    return split


def _reference(cells: PerturbedCells, is_control: np.ndarray, share: float) -> np.ndarray:
    """Rows of `share` of the control cells of each type and batch: those whose names hash lowest."""
    rows = np.flatnonzero(is_control)
    groups: dict[tuple, list[int]] = {}
    for row in rows:
        key = tuple(None if values is None else values[row] for values in (cells.cell_type, cells.batch))
        groups.setdefault(key, []).append(row)
    chosen: list[int] = []
    for members in groups.values():
        members.sort(key=lambda row: blake2b(cells.names[row].encode(), digest_size=8, key=REFERENCE_KEY).digest())
        chosen += members[: round(share * len(members))]
    return np.array(sorted(chosen), dtype=np.int64)


def _without_vector(cells: PerturbedCells, features: LevelFeatures | None) -> list[str]:
    """Perturbations that the embeddings have no vector of."""
    names = sorted(set(cells.perturbation) - {CONTROL})
    if features is None:
        return []
    found = perturbation_vectors(names, features)
    return [name for name in names if name not in found]


def perturbation_vectors(names: list[str], features: LevelFeatures) -> Mapping[str, np.ndarray]:
    """A vector for each of these perturbations that has one; those of pairs are sums."""
    return combined_vectors(names, dict(zip(features.names, features.values, strict=True)))


def _leave_out(
    cells: PerturbedCells,
    split: np.ndarray,
    lacking: list[str],
    min_cells: int,
    left_out: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Empty the split of cells that the task has no place for, and tell why."""
    numbers = cells_of(cells.perturbation)
    few = [name for name, number in numbers.items() if number < min_cells and name != CONTROL]
    unplaced = sorted(set(cells.perturbation[split == ""].astype(str)) - set(few))
    for_test = np.isin(split.astype(str), ("val", "test"))
    blind = sorted(set(cells.perturbation[for_test].astype(str)) & set(lacking) - set(few))
    for names, reason in (
        (few, f"fewer than {min_cells} cells (--min-cells)"),
        (unplaced, "no part of the split"),
        (blind, "no embedding, and for validation or test"),
    ):
        if names:
            say(f"{len(names):,} perturbations are left out, {reason}: {counted(names)}")
        left_out.update(dict.fromkeys(names, reason))
    split[np.isin(cells.perturbation.astype(str), few)] = ""
    split[for_test & np.isin(cells.perturbation.astype(str), blind)] = ""
    if kept := sorted(set(lacking) & set(cells.perturbation[split == "train"].astype(str))):
        say(f"{len(kept):,} training perturbations have no embedding, and are told by name alone: {counted(kept)}")
