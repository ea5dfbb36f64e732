"""Tahoe-100M's side tables: the genes, the dose of a sample, the name of a cell line.

They are read as published: gene_metadata (gene_symbol, ensembl_id, token_id), sample_metadata (sample, plate, drug,
drugname_drugconc, ...) and cell_line_metadata (cell_name, Cell_ID_Cellosaur, ...; several rows a line).
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mdsc.data.byte_ranges import file_system, is_url
from mdsc.data.genes import FIRST_TOKEN_ID, GeneVocabulary
from mdsc.errors import UserError

CONTROL = "DMSO_TF"
"""The drug of control cells, exactly. "Trametinib (DMSO_TF solvate)" is a drug."""


@dataclass(frozen=True)
class SideTables:
    """Where the tables are: the first of some folders (or URLs) that has one is taken."""

    folders: tuple[str, ...]

    def read(self, name: str, columns: Sequence[str]) -> dict[str, list]:
        """Columns of the table `name`; a `UserError` says where it was looked for, or what it lacks."""
        for folder in self.folders:
            path = f"{folder.rstrip('/')}/{name}.parquet"
            system, inside = file_system(path if is_url(path) else str(Path(path).absolute()))
            try:
                if not system.isfile(inside):
                    continue
                # Read here whole: threads of arrow that still read by way of Python would abort a program that ends.
                table = pq.ParquetFile(pa.BufferReader(system.cat_file(inside))).read(use_threads=False)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): copy it again") from error
            if lacking := [column for column in columns if column not in table.column_names]:
                has = ", ".join(table.column_names)
                raise UserError(f"{path} has no column {', '.join(lacking)} (it has {has}): is it Tahoe's {name}?")
            return {column: table[column].to_pylist() for column in columns}
        raise UserError(
            f"there is no {name}.parquet in {', '.join(self.folders)}: copy Tahoe's metadata/{name}.parquet there, or "
            "say with --metadata where it is."
        )

    def vocabulary(self) -> tuple[GeneVocabulary, int]:
        """All genes, and how many symbols had to be told apart.

        A vocabulary has each symbol once: one that stands for several genes gets the Ensembl id behind it, `A_ENSG...`.
        """
        table = self.read("gene_metadata", ("gene_symbol", "ensembl_id", "token_id"))
        if any(value is None for values in table.values() for value in values):
            raise UserError("gene_metadata.parquet has genes without symbol, Ensembl id or token id: copy it again")
        token_ids = np.array(table["token_id"], dtype=np.int64)
        if len(token_ids) == 0 or token_ids.min() < FIRST_TOKEN_ID or len(np.unique(token_ids)) < len(token_ids):
            raise UserError(
                f"gene_metadata.parquet: column token_id must have each id once, from {FIRST_TOKEN_ID} on "
                "(below are Tahoe's padding, CLS and end): copy it again"
            )
        order = np.argsort(token_ids)
        ids = [table["ensembl_id"][place] for place in order]
        symbols = [table["gene_symbol"][place] for place in order]
        times = Counter(symbols)
        named = [
            f"{symbol}_{ensembl}" if times[symbol] > 1 else symbol for symbol, ensembl in zip(symbols, ids, strict=True)
        ]
        repeated = sum(number > 1 for number in times.values())
        return GeneVocabulary(tuple(named), tuple(ids), token_ids[order]), repeated

    def doses(self) -> dict[str, str]:
        """Dose of each sample, such as "0.05 uM"; the expression files do not have it."""
        table = self.read("sample_metadata", ("sample", "drugname_drugconc"))
        return {sample: dose_of(text) for sample, text in zip(table["sample"], table["drugname_drugconc"], strict=True)}

    def cell_lines(self) -> dict[str, str]:
        """Name of each Cellosaurus id."""
        table = self.read("cell_line_metadata", ("Cell_ID_Cellosaur", "cell_name"))
        names: dict[str, str] = {}
        for cellosaurus, name in zip(table["Cell_ID_Cellosaur"], table["cell_name"], strict=True):
            if cellosaurus and name and names.setdefault(cellosaurus, name) != name:
                raise UserError(
                    f"cell_line_metadata.parquet: {cellosaurus} has the names {names[cellosaurus]} and {name}; correct "
                    "it, or take --condition-columns cell_line_id"
                )
        return names


def dose_of(text: str | None) -> str:
    """``[('Infigratinib', 0.05, 'uM')]`` -> ``0.05 uM``, "" for nothing. Several drugs' doses are joined by " + ".

    The text is a Python literal; it is parsed as one and not run.
    """
    if not text:
        return ""
    try:
        drugs = ast.literal_eval(text)
        doses = [f"{float(amount):g} {unit}" for name, amount, unit in drugs if isinstance(unit + name, str)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(
            f"sample_metadata.parquet: drugname_drugconc {text[:60]!r} is not like [('Infigratinib', 0.05, 'uM')]"
        ) from error
    return " + ".join(doses)


def stripped(names: Sequence[str]) -> Mapping[str, str]:
    """Drug names without blanks at their ends, where any has some ("Erdafitinib ", "Selinexor "); else nothing.

    In Tahoe's drug_metadata the same names have none, and of the 380 names of sample_metadata no two become the same.
    Where two would, none is changed.
    """
    trimmed = {name: name.strip() for name in names}
    if all(name == short for name, short in trimmed.items()) or len(set(trimmed.values())) < len(trimmed):
        return {}
    return trimmed
