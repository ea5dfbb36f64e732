"""`mdsc validate cells.h5ad`: is a file usable, where are its raw counts, do its genes match, and what to mend.

The exit code is 0 for a file that is usable, 1 for one that is not, and 2 for one that cannot be read at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from mdsc.config.flags import parse_flags
from mdsc.data.anndata_counts import CountSource, find_counts, open_counts
from mdsc.data.genes import GeneVocabulary, gene_identifiers, refuse_duplicates
from mdsc.errors import UserError

# Below this share of a model's genes a cell is mostly missing to it.
LOW_MATCH = 0.5
SUM = "`mdsc prepare h5ad --duplicate-genes sum` adds them up."


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    input: tyro.conf.Positional[Path]
    """h5ad file."""
    layer: str | None = None
    """Where the counts are: the name of a layer, or "raw"; by default X."""
    checkpoint_genes: Path | None = None
    """Folder of a checkpoint or of shards, to whose genes the file's are matched."""


@dataclass(frozen=True)
class Finding:
    what: str
    state: Literal["good", "warning", "fault"]
    text: str


def validate(config: ValidateConfig) -> list[Finding]:
    """All findings; the file is usable if none is a fault. `UserError` if it cannot be read at all."""
    vocabulary = None if config.checkpoint_genes is None else _genes_of(config.checkpoint_genes)
    places = find_counts(config.input)
    findings = [Finding(place, "warning" if fault else "good", fault or "counts") for place, fault in places.items()]
    try:
        with open_counts(config.input, config.layer, obs_columns=(), unique_genes=False) as source:
            try:
                refuse_duplicates(source.var.index.astype(str).tolist(), source.name)
            except UserError as error:
                findings.append(Finding("genes", "fault", f"{error}\n{SUM}"))
                return findings
            findings += [_depth(source), _names(source), _columns(source)]
            if vocabulary is not None:
                findings.append(_match(source, vocabulary))
    except UserError as error:
        findings.append(Finding("usable?", "fault", str(error)))
    return findings


def _genes_of(folder: Path) -> GeneVocabulary:
    try:
        return GeneVocabulary.load(folder)
    except UserError as error:
        what = error if folder.is_dir() else f"there is no folder of that name ({error})"
        raise UserError(f"--checkpoint-genes {folder}: {what}") from error


def _depth(source: CountSource) -> Finding:
    """Reads every count, so that one wrong value anywhere is found."""
    blocks = [(block.sum(axis=1), np.diff(block.indptr)) for block in source.chunks()]
    depths = np.concatenate([np.asarray(depth).ravel() for depth, _ in blocks])
    genes = np.concatenate([number for _, number in blocks])
    text = (
        f"{len(depths):,} cells x {len(source.var):,} genes; median {np.median(depths):,.0f} counts of "
        f"{np.median(genes):,.0f} genes a cell"
    )
    if empty := int((depths == 0).sum()):
        return Finding("cells", "warning", f"{text}; {empty:,} cells have no counts: leave them out")
    return Finding("cells", "good", text)


def _names(source: CountSource) -> Finding:
    symbols, ids = gene_identifiers(source.var)
    known = sum(map(bool, ids))
    text = f"{', '.join(symbols[:3])}, ...; Ensembl ids of {known:,} of {len(ids):,}"
    return Finding("genes", "good", text)


def _columns(source: CountSource) -> Finding:
    columns = ", ".join(source.obs_columns) or "none"
    return Finding("obs", "good", f"columns that may be conditions: {columns}")


def _match(source: CountSource, vocabulary: GeneVocabulary) -> Finding:
    matched = int((vocabulary.match_var(source.var, source.name) >= 0).sum())
    column = vocabulary.naming_column(source.var)
    names = f"var[{column!r}]" if column else "var_names"
    text = (
        f"{matched:,} of the file's {len(source.var):,} genes are known to the model, by {names}: "
        f"{matched / len(vocabulary):.0%} of its {len(vocabulary):,}"
    )
    if matched < LOW_MATCH * len(vocabulary):
        return Finding("match", "warning", f"{text}. To the model its other genes are not measured.")
    return Finding("match", "good", text)


def report(path: Path, findings: Sequence[Finding]) -> None:
    """Print the findings as a table, and the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"good": "[green]ok[/]", "warning": "[yellow]note[/]", "fault": "[red]fault[/]"}
    table = Table(title=escape(str(path)), title_justify="left", show_header=False)
    for finding in findings:
        table.add_row(marks[finding.state], escape(finding.what), escape(finding.text))
    console = Console()
    console.print(table)
    usable = all(finding.state != "fault" for finding in findings)
    console.print("usable" if usable else "not usable as it is", style="bold")


def main(argv: Sequence[str] | None = None) -> None:
    """Print what was found; exit code 1 for a file that is not usable."""
    config = parse_flags(ValidateConfig, argv, __doc__)
    findings = validate(config)
    report(config.input, findings)
    if any(finding.state == "fault" for finding in findings):
        raise SystemExit(1)
