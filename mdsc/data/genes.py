"""The gene vocabulary: which genes a model knows, in which order, and how a user's gene names are matched to it.

Stored as `genes.parquet` (token_id, gene_symbol, ensembl_id: the columns of Tahoe-100M's gene_metadata), with the
statistics of the training cells as further columns where they are known.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int32, Int64

from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "genes.parquet"
# Token ids 0, 1 and 2 are Tahoe's pad, CLS and end: genes start at 3.
FIRST_TOKEN_ID = 3
TOO_LARGE_TOKEN_ID = 2**24  # of a damaged file: there is a table of as many entries
REPAIR = "copy the folder again, or make it again"
ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,})(\.\d+)?")
SPECIES = re.compile(r"(ENS[A-Z]*G)\d{6,}")
SPECIES_FACTOR = 10  # so many times more names match but for capitals: no chance
ENSEMBL_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "ensembl", "ensembl_ids", "feature_id")
SYMBOL_COLUMNS = ("gene_symbol", "gene_symbols", "gene_name", "gene_names", "feature_name", "symbol")


@dataclass(frozen=True, eq=False)
class GeneVocabulary:
    """G genes; a gene's place here is its id in the model."""

    symbols: tuple[str, ...]
    ensembl_ids: tuple[str, ...]
    """Without version; "" where unknown."""
    token_ids: Int64[np.ndarray, " genes"]
    """Ids in the shards: 3 or more, ascending."""

    def __post_init__(self) -> None:
        assert len(self.symbols) == len(self.ensembl_ids) == len(self.token_ids)
        assert len(self.token_ids) == 0 or self.token_ids[0] >= FIRST_TOKEN_ID
        assert (np.diff(self.token_ids) > 0).all(), "token ids ascend"
        refuse_duplicates(self.symbols, "the gene vocabulary")

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def of(cls, symbols: Sequence[str], ensembl_ids: Sequence[str] | None = None) -> "GeneVocabulary":
        """A new vocabulary of these genes in this order."""
        token_ids = np.arange(len(symbols), dtype=np.int64) + FIRST_TOKEN_ID
        return cls(tuple(symbols), tuple(ensembl_ids or [""] * len(symbols)), token_ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and ids, in hex: equal vocabularies have equal digests."""
        lines = zip(self.symbols, self.ensembl_ids, self.token_ids.tolist(), strict=True)
        return hashlib.sha256("\n".join("\t".join(map(str, line)) for line in lines).encode()).hexdigest()

    @cached_property
    def index_of_token(self) -> Int32[np.ndarray, " ids"]:
        """Table from a shard's token id to the place in the vocabulary, -1 where the id is unknown."""
        table = np.full(int(self.token_ids[-1]) + 1 if len(self) else 0, -1, dtype=np.int32)
        table[self.token_ids] = np.arange(len(self))
        return table

    @cached_property
    def _place_of_symbol(self) -> dict[str, int]:
        return {symbol: place for place, symbol in enumerate(self.symbols)}

    @cached_property
    def _place_of_ensembl(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.ensembl_ids) if name}

    def match(self, names: Sequence[str], source: str = "the input") -> Int64[np.ndarray, " names"]:
        """Place in the vocabulary of each name, -1 where it has none.

        Names are symbols or Ensembl ids (the version is cut off), whichever match more. A `UserError` tells of names
        that stand for the same gene, and of names none of which is known.
        """
        return self._checked(self._match(names), names, source)

    def match_var(self, var: "pd.DataFrame", source: str = "the input") -> Int64[np.ndarray, " names"]:
        """`match` for the genes of an AnnData: by its var_names, or a column of names if that matches more."""
        names = var[column] if (column := self.naming_column(var)) else var.index
        names = names.astype(str).tolist()
        return self._checked(self._match(names), names, source)

    def naming_column(self, var: "pd.DataFrame") -> str | None:
        """The column of names that matches more genes than var_names do; None where these do best."""
        columns = [name for name in (*ENSEMBL_COLUMNS, *SYMBOL_COLUMNS) if name in var]
        candidates = [var.index, *(var[name] for name in columns)]
        matched = [(self._match(names.astype(str).tolist()) >= 0).sum() for names in candidates]
        return [None, *columns][int(np.argmax(matched))]

    def _match(self, names: Sequence[str]) -> Int64[np.ndarray, " names"]:
        by_symbol = [self._place_of_symbol.get(name, -1) for name in names]
        by_ensembl = [self._place_of_ensembl.get(without_version(name), -1) for name in names]
        options = [np.array(places, dtype=np.int64) for places in (by_symbol, by_ensembl)]
        return max(options, key=lambda places: (places >= 0).sum())

    def _checked(
        self, places: Int64[np.ndarray, " names"], names: Sequence[str], source: str
    ) -> Int64[np.ndarray, " names"]:
        known = np.flatnonzero(places >= 0)
        folded = {symbol.casefold() for symbol in self.symbols}
        but_for_case = sum(name.casefold() in folded for name in names)
        # Mouse data has some names of human genes by chance.
        if len(known) == 0 or SPECIES_FACTOR * len(known) < but_for_case:
            mine = ", ".join(self.symbols[:3] + tuple(filter(None, self.ensembl_ids[:2])))
            kinds = [
                {found[1] for name in some if (found := SPECIES.match(name))} for some in (names, self.ensembl_ids)
            ]
            hint = ""
            if but_for_case:
                hint = f" {but_for_case:,} match but for capitals: is it another species (mouse: Cd3e, human: CD3E)?"
            elif all(kinds) and not set.intersection(*kinds):
                theirs, ours = (" and ".join(sorted(kind)) for kind in kinds)
                hint = f" Ids that begin with {theirs} are of another species than {ours}."
            common = f"{len(known):,} genes" if len(known) else "no gene"
            raise UserError(
                f"{source} has {common} in common with the vocabulary of {len(self)} genes: it has "
                f"{', '.join(map(str, names[:3]))}, ...; the vocabulary has {mine}, ....{hint}\n"
                "Name the genes (adata.var_names) by the same symbols or Ensembl ids."
            )
        refuse_duplicates([self.symbols[place] for place in places[known]], source)
        return places

    def save(self, folder: str | Path, statistics: "GeneStatistics | None" = None) -> None:
        columns = {
            "token_id": self.token_ids,
            "gene_symbol": pa.array(self.symbols, pa.string()),
            "ensembl_id": pa.array(self.ensembl_ids, pa.string()),
        }
        if statistics is not None:
            columns |= {name: getattr(statistics, name) for name in GeneStatistics.COLUMNS}
        write_genes(pa.table(columns), Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | Path) -> "GeneVocabulary":
        """Of a checkpoint or a folder of shards, or a genes.parquet of any name; UserError where it is damaged."""
        path = Path(folder)
        path = path if path.is_file() else path / FILE_NAME
        table = read_genes(path, {"token_id": pa.int64(), "gene_symbol": pa.string(), "ensembl_id": pa.string()})
        token_ids = table["token_id"].to_numpy()
        if len(token_ids) == 0:
            raise UserError(f"{path} is damaged: it has no genes; {REPAIR}")
        if token_ids[0] < FIRST_TOKEN_ID or token_ids[-1] >= TOO_LARGE_TOKEN_ID or (np.diff(token_ids) <= 0).any():
            raise UserError(f"{path} is damaged: token_id does not ascend from {FIRST_TOKEN_ID}; {REPAIR}")
        return cls(tuple(table["gene_symbol"].to_pylist()), tuple(table["ensembl_id"].to_pylist()), token_ids)


@dataclass(frozen=True, eq=False)
class GeneStatistics:
    """What the training cells have of each gene of the vocabulary."""

    detection_rate: Float64[np.ndarray, " genes"]
    """Share of cells with a count above 0."""
    mean_count: Float64[np.ndarray, " genes"]
    mean_log1p: Float64[np.ndarray, " genes"]
    """Mean of log(1 + count)."""

    COLUMNS = ("detection_rate", "mean_count", "mean_log1p")

    @classmethod
    def load(cls, folder: str | Path) -> "GeneStatistics":
        """Read what `GeneVocabulary.save` has written; UserError where it is missing or damaged."""
        path = Path(folder) / FILE_NAME
        table = read_genes(path, dict.fromkeys(cls.COLUMNS, pa.float64()))
        columns = [table[name].to_numpy() for name in cls.COLUMNS]
        for name, column in zip(cls.COLUMNS, columns, strict=True):
            if not (np.isfinite(column).all() and column.min(initial=0) >= 0):
                raise UserError(f"{path} is damaged: {name} has values that are negative or no numbers; {REPAIR}")
        return cls(*columns)


def known_columns(places: Int64[np.ndarray, " columns"]) -> Int64[np.ndarray, " known"]:
    """The columns whose gene has a place in the vocabulary, in its order: so that a gene gets the same draws wherever
    it stands. places: what `GeneVocabulary.match` gives."""
    return np.argsort(places, kind="stable")[(places < 0).sum() :]


def without_version(name: str) -> str:
    """ENSG00000188976.4 -> ENSG00000188976; any other name as it is."""
    found = ENSEMBL.fullmatch(name)
    return found[1] if found else name


def gene_identifiers(var: "pd.DataFrame") -> tuple[list[str], list[str]]:
    """Symbols and Ensembl ids ("" where unknown) of an AnnData's genes, from var_names and columns with usual names.

    Where there are no symbols, or where a column of symbols repeats itself, var_names stand in for them.
    """
    names = var.index.astype(str).tolist()
    if _mostly_ensembl(names):
        ids = [without_version(name) if ENSEMBL.fullmatch(name) else "" for name in names]
        symbols = _first_column(var, SYMBOL_COLUMNS, lambda column: len(set(column)) == len(column))
        return symbols or list(map(without_version, names)), ids
    ids = _first_column(var, ENSEMBL_COLUMNS, _mostly_ensembl) or [""] * len(names)
    return names, [without_version(name) if ENSEMBL.fullmatch(name) else "" for name in ids]


def _first_column(var: "pd.DataFrame", names: Sequence[str], accept) -> list[str] | None:
    for name in names:
        if name in var:
            column = var[name].astype(str).tolist()
            if accept(column):
                return column
    return None


def _mostly_ensembl(names: Sequence[str]) -> bool:
    return 2 * sum(ENSEMBL.fullmatch(name) is not None for name in names) > len(names)


def refuse_duplicates(names: Sequence[str], source: str) -> None:
    if len(set(names)) < len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise UserError(
            f"{source} has several columns for the same gene: {', '.join(twice[:5])}{more}.\n"
            "Add up or drop the duplicates (adata.var_names_make_unique() would hide them)."
        )


def write_genes(table: pa.Table, path: Path) -> None:
    """With a hash of each column: a flipped bit would else be another gene's name, or another rate."""
    hashes = {f"sha256 {name}": _column_hash(table[name]) for name in table.column_names}
    pq.write_table(table.replace_schema_metadata(hashes), path)


def read_genes(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """These columns, of these types and without gaps; hashes are compared where the file has them."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {REPAIR}")
    try:
        table = pq.read_table(path, columns=list(columns))
        table.validate(full=True)  # text is UTF-8
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); {REPAIR}") from error
    for name, kind in columns.items():
        if table[name].type != kind or table[name].null_count:
            raise UserError(f"{path} is damaged: {name} is not {kind} throughout; {REPAIR}")
        expected = (table.schema.metadata or {}).get(f"sha256 {name}".encode())
        if expected is not None and expected != _column_hash(table[name]).encode():
            raise UserError(f"{path} is damaged: {name} is not what was written (hash differs); {REPAIR}")
    return table


def _column_hash(column: pa.ChunkedArray) -> str:
    return hashlib.sha256(repr(column.to_pylist()).encode()).hexdigest()
