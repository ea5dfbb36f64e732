"""Perturb-seq cells of any file as one thing: raw counts, gene symbols, each cell's perturbation, type and batch.

GEARS        obs.condition = GENE+ctrl | ctrl | A+B, obs.cell_type, var.gene_name, raw counts in layers["counts"]
scPerturb    obs.perturbation (pairs joined by _), controls `control`, raw counts in X
GEO          a folder of 10x files (`mdsc.prep.geo_10x`)
any other    by --perturbation-column, --control-label, --cell-type-column, --batch-column
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdsc.data.anndata_counts import find_counts, open_counts
from mdsc.data.condition_levels import near_names
from mdsc.data.count_faults import described
from mdsc.data.genes import ENSEMBL, SYMBOL_COLUMNS, gene_identifiers
from mdsc.data.perturbations import CONTROL
from mdsc.errors import UserError
from mdsc.prep.geo_10x import read_geo
from mdsc.prep.perturbation_names import NO_GUIDE, NameRule, counted

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

NO_PERTURBATION = ("", "nan", "None", "NA")
CELL_TYPES = ("cell_type", "celltype")
BATCHES = ("batch", "gem_group")


@dataclass(frozen=True, eq=False)
class PerturbedCells:
    """Cells of one file, in its order, without those of which the perturbation is not known."""

    counts: "sp.csr_matrix"
    """(cells, genes) int32."""
    genes: tuple[str, ...]
    """Symbols, each once."""
    perturbation: np.ndarray
    """(cells,) canonical names, str."""
    conditions: tuple[str, ...]
    """The perturbations as the file writes them (the order within a pair is the file's), without the control."""
    cell_type: np.ndarray | None
    batch: np.ndarray | None
    split: np.ndarray | None
    """(cells,) of --split-column."""
    names: np.ndarray
    source: str


@dataclass(frozen=True)
class SourceColumns:
    """Which columns of obs say what; None: found by usual names."""

    perturbation: str | None = None
    cell_type: str | None = None
    batch: str | None = None
    split: str | None = None
    control_labels: tuple[str, ...] = ()
    joined_by: str | None = None
    layer: str | None = None
    no_guide: str = "control"
    """What cells of GSE90546's identity "*" are: "control" or "leave-out"."""


def read_cells(source: "AnnData | Path", columns: SourceColumns, say: Callable[[str], None]) -> PerturbedCells:
    """Read an AnnData, an h5ad file or a folder of GEO's files; `say` is told what was found where."""
    if isinstance(source, Path) and source.is_dir():
        given, name = read_geo(source, say), str(source)
    else:
        given, name = source, str(source) if isinstance(source, Path) else "the AnnData"
    layer = columns.layer or _where_counts_are(given)
    with open_counts(given, layer, name, unique_genes=False) as opened:
        obs, var = opened.obs, opened.var
        column, kind = _perturbation_column(obs, columns.perturbation, opened.name)
        cell_type = _column(obs, columns.cell_type, CELL_TYPES, "--cell-type-column", opened.name)
        batch = _column(obs, columns.batch, BATCHES, "--batch-column", opened.name)
        split = _column(obs, columns.split, (), "--split-column", opened.name)
        others = [name for name in (cell_type, batch) if name]
        say(
            f"{opened.name}: {kind}perturbations of obs.{column}, counts of {described(opened.location)}"
            + (f", beside obs.{' and obs.'.join(others)}" if others else "")
        )
        # A category may hold "ctrl " or "nan"; what is written is what counts.
        labels = obs[column].astype(str).str.strip().to_numpy(dtype=object)
        labels[obs[column].isna().to_numpy()] = ""
        counts = opened.read().counts
    known = ~np.isin(labels.astype(str), NO_PERTURBATION)
    if columns.no_guide == "leave-out":
        known &= labels != NO_GUIDE
    if not known.all():
        say(f"{(~known).sum():,} cells of {len(known):,} have no perturbation told, and are left out")
    present = sorted(set(labels[known].tolist()))
    rule = NameRule.of(present, columns.control_labels, columns.joined_by, name)
    if rule.are_guides and NO_GUIDE in rule.control_labels:
        number = int((labels == NO_GUIDE).sum())
        say(
            f'{number:,} of the control cells are those of no guide ("{NO_GUIDE}"): --no-guide leave-out keeps them out'
        )
    _tell_of_pairs(obs, labels, rule, name, say)
    canonical = {label: rule.canonical(label) for label in present}
    if CONTROL not in canonical.values():
        raise UserError(f"{name} has no control cells: name theirs by --control-label; it has {counted(present)}.")
    counts, genes = _by_symbol(counts, var, say)

    def values(chosen: str | None) -> np.ndarray | None:
        return None if chosen is None else obs[chosen].astype(str).to_numpy(dtype=object)[known]

    return PerturbedCells(
        counts if known.all() else counts[np.flatnonzero(known)],  # a copy of all would be as large again
        genes,
        np.array([canonical[label] for label in labels[known]], dtype=object),
        tuple(rule.original(label) for label in present if canonical[label] != CONTROL),
        values(cell_type),
        values(batch),
        values(split),
        obs.index.astype(str).to_numpy(dtype=object)[known],
        name,
    )


def _where_counts_are(source: "AnnData | Path") -> str | None:
    """layers["counts"] where it holds counts, else X, else the first place that does; None: let the reader say so."""
    faults = find_counts(source)
    places = [place for place in ("counts", "X", "raw", *faults) if place in faults and not faults[place]]
    return places[0] if places else None


def _perturbation_column(obs: "pd.DataFrame", given: str | None, source: str) -> tuple[str, str]:
    """The column, and the kind of file it makes this."""
    if given is not None:
        return _existing(obs, given, "--perturbation-column", source), ""
    if "condition" in obs and obs["condition"].astype(str).str.contains(CONTROL, regex=False).any():
        return "condition", "a file of GEARS, "
    if "perturbation" in obs:
        return "perturbation", "a file like scPerturb's, "
    if "condition" in obs:
        return "condition", ""
    raise UserError(
        f"{source} has neither obs.condition (GEARS) nor obs.perturbation (scPerturb): name the column by "
        f"--perturbation-column; it has {counted(obs.columns, 10) or 'none'}."
    )


def _column(obs: "pd.DataFrame", given: str | None, usual: Sequence[str], flag: str, source: str) -> str | None:
    if given is not None:
        return _existing(obs, given, flag, source)
    return next((name for name in usual if name in obs and not obs[name].isna().any()), None)


def _existing(obs: "pd.DataFrame", name: str, flag: str, source: str) -> str:
    if name not in obs:
        raise UserError(
            f"{source} has no column {name!r} in obs ({flag}): {near_names(name, map(str, obs), 'it has')}."
        )
    return name


def _tell_of_pairs(
    obs: "pd.DataFrame", labels: np.ndarray, rule: NameRule, source: str, say: Callable[[str], None]
) -> None:
    if rule.joined_by or rule.are_guides or "nperts" not in obs:
        return
    are_pairs = obs["nperts"].astype(str).isin(["2", "2.0", "3", "3.0"]).to_numpy()
    pairs = sum("_" in label for label in labels[are_pairs])
    if pairs:
        say(f"{source}: obs.nperts tells of several genes for {pairs:,} cells: what joins their names is --joined-by _")


def _by_symbol(
    counts: "sp.csr_matrix", var: "pd.DataFrame", say: Callable[[str], None]
) -> tuple["sp.csr_matrix", tuple[str, ...]]:
    """Columns by symbol; genes of one symbol are added up."""
    import scipy.sparse as sp

    names = gene_identifiers(var)[0]
    if 2 * sum(ENSEMBL.fullmatch(name) is not None for name in names) > len(names):
        # A column of symbols that repeats itself was passed over; where it has none, the id stays.
        column = next((name for name in SYMBOL_COLUMNS if name in var), None)
        if column is None:
            say("genes have Ensembl ids and no symbols: perturbed genes are not found among them")
        else:
            symbols = var[column].astype(str).tolist()
            names = [name if symbol in NO_PERTURBATION else symbol for name, symbol in zip(names, symbols, strict=True)]
    unique = tuple(dict.fromkeys(names))
    if len(unique) == len(names):
        return counts, unique
    say(f"{len(names) - len(unique):,} genes have a symbol that another has too: their counts are added up")
    place = {name: number for number, name in enumerate(unique)}
    columns = [place[name] for name in names]
    adding = sp.csr_matrix((np.ones(len(names), np.int32), (range(len(names)), columns)), (len(names), len(unique)))
    return sp.csr_matrix(counts @ adding).astype(np.int32), unique
