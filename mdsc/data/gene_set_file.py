"""Gene sets (GO, Reactome, ...) as published: GMT files."""

import gzip
from collections.abc import Collection
from pathlib import Path

from mdsc.errors import UserError


def read_gmt(path: Path) -> dict[str, frozenset[str]]:
    """Gene sets by name: one a line, its name, a description, and genes, between tabs (Broad Institute's GMT)."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split("\t") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    # A gene may carry a weight behind a comma (Enrichr).
    sets = {line[0]: frozenset(gene.partition(",")[0] for gene in line[2:] if gene) for line in lines}
    if not any(sets.values()):
        raise UserError(f"{path} holds no gene sets: one a line, name, description and genes between tabs.")
    return sets


def sets_of_genes(sets: dict[str, frozenset[str]], genes: Collection[str] | None = None) -> dict[str, frozenset[str]]:
    """Gene -> names of the sets that it is in; of these genes, or of all."""
    found: dict[str, set[str]] = {}
    for name, members in sets.items():
        for gene in members if genes is None else members & frozenset(genes):
            found.setdefault(gene, set()).add(name)
    return {gene: frozenset(names) for gene, names in found.items()}
