"""Which gene of the shards each column of each h5ad file is: the union of all files' genes, or a given vocabulary.

Genes are joined by Ensembl id (without version) where a file has ids, else by symbol. So a gene that one file calls by
an old symbol is still one gene, and a file with symbols alone finds it by either symbol.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from mdsc.data.genes import ENSEMBL, GeneVocabulary, without_version
from mdsc.errors import UserError

NUM_SHOWN = 3


@dataclass(frozen=True, eq=False)
class FileGenes:
    """The columns of one file, from `gene_identifiers`."""

    name: str
    """The file, as messages name it."""
    symbols: Sequence[str]
    ensembl_ids: Sequence[str]
    """"" where unknown."""


@dataclass(frozen=True, eq=False)
class JoinedGenes:
    vocabulary: GeneVocabulary
    places: tuple[Int64[np.ndarray, " _"], ...]
    """Of each file's columns in the vocabulary, -1 where it lacks the gene; columns of one gene have one place."""
    report: tuple[str, ...]
    """Lines on what was joined, for a person."""


def join_genes(
    files: Sequence[FileGenes],
    vocabulary: GeneVocabulary | None = None,
    duplicates: Literal["error", "sum"] = "error",
) -> JoinedGenes:
    """The union in order of appearance, or the places in `vocabulary`. A `UserError` tells of files without a gene in
    common with the others (or with the vocabulary), and of columns for the same gene unless they are to be added up."""
    by_file = [_without_repeats(file) for file in files]
    if vocabulary is None:
        vocabulary, places, report = _union(by_file)
        _refuse_strangers(files, places)
    else:
        places = [_in_vocabulary(file, vocabulary) for file in by_file]
        report = _vocabulary_report(files, places, vocabulary)
    for file, of_file in zip(files, places, strict=True):
        number = _check_duplicates(file, of_file, duplicates)
        if number:
            report.append(f"{file.name}: {number:,} genes have several columns, whose counts are added up")
    return JoinedGenes(vocabulary, tuple(places), tuple(report))


def _without_repeats(file: FileGenes) -> FileGenes:
    """Give columns of one symbol one id, unless the later one shares its id with another column; ids that stand among
    the symbols are ids."""
    ids = [known or _as_id(symbol) for symbol, known in zip(file.symbols, file.ensembl_ids, strict=True)]
    times = Counter(filter(None, ids))
    first: dict[str, int] = {}
    for column, symbol in enumerate(file.symbols):
        earlier = first.setdefault(symbol, column)
        if earlier == column or times[ids[column]] > 1:
            continue
        if ids[earlier]:
            ids[column] = ids[earlier]
        else:
            ids[earlier] = ids[column]
    return FileGenes(file.name, file.symbols, ids)


def _as_id(symbol: str) -> str:
    return without_version(symbol) if ENSEMBL.fullmatch(symbol) else ""


def _union(files: Sequence[FileGenes]) -> tuple[GeneVocabulary, list[Int64[np.ndarray, " _"]], list[str]]:
    symbols_of_id: dict[str, dict[str, None]] = {}
    id_of_symbol: dict[str, str] = {}
    for file in files:
        for symbol, ensembl_id in zip(file.symbols, file.ensembl_ids, strict=True):
            if ensembl_id:
                names = symbols_of_id.setdefault(ensembl_id, {})
                if not ENSEMBL.fullmatch(symbol):
                    names[symbol] = None
                    id_of_symbol.setdefault(symbol, ensembl_id)

    # A gene is its id, or its symbol where no file knows an id for that.
    genes: dict[tuple[str, str], int] = {}
    places = []
    for file in files:
        keys = []
        for symbol, ensembl_id in zip(file.symbols, file.ensembl_ids, strict=True):
            ensembl_id = ensembl_id or id_of_symbol.get(symbol, "")
            keys.append((ensembl_id, "" if ensembl_id else symbol))
        places.append(np.array([genes.setdefault(key, len(genes)) for key in keys], dtype=np.int64))

    taken = {symbol for _, symbol in genes if symbol}
    symbols = []
    for ensembl_id, symbol in genes:
        # Two ids may share a symbol; the later one is called by what is left, at the last by its id.
        name = symbol or next((name for name in symbols_of_id[ensembl_id] if name not in taken), ensembl_id)
        taken.add(name)
        symbols.append(name)
    vocabulary = GeneVocabulary.of(symbols, [ensembl_id for ensembl_id, _ in genes])
    return vocabulary, places, _union_report(files, vocabulary, places, symbols_of_id)


def _union_report(
    files: Sequence[FileGenes],
    vocabulary: GeneVocabulary,
    places: Sequence[Int64[np.ndarray, " _"]],
    symbols_of_id: dict[str, dict[str, None]],
) -> list[str]:
    if len(files) == 1:
        return []
    num_files = np.zeros(len(vocabulary), dtype=np.int64)
    for of_file in places:
        num_files[np.unique(of_file)] += 1
    common = int((num_files == len(files)).sum())
    without = np.zeros(len(vocabulary), dtype=bool)
    for file, of_file in zip(files, places, strict=True):
        without[of_file[[not ensembl_id for ensembl_id in file.ensembl_ids]]] = True
    number = int(without.sum())
    report = [
        f"genes: {common:,} are in all {len(files)} files, {len(vocabulary) - common:,} only in some; "
        + (
            f"{len(vocabulary) - number:,} are joined by Ensembl id, and {number:,} by symbol, as a file has no id of "
            "them"
            if number
            else "all are joined by Ensembl id"
        )
    ]
    disagree = [(ensembl_id, list(names)) for ensembl_id, names in symbols_of_id.items() if len(names) > 1]
    if disagree:
        examples = [f"{' or '.join(names)} ({ensembl_id})" for ensembl_id, names in disagree[:NUM_SHOWN]]
        report.append(f"symbols of {len(disagree):,} genes disagree: {_listed(examples, len(disagree))}")
    return report


def _in_vocabulary(file: FileGenes, vocabulary: GeneVocabulary) -> Int64[np.ndarray, " columns"]:
    place_of_id = {name: place for place, name in enumerate(vocabulary.ensembl_ids) if name}
    place_of_symbol = {name: place for place, name in enumerate(vocabulary.symbols)}
    places = np.full(len(file.symbols), -1, dtype=np.int64)
    for column, (symbol, ensembl_id) in enumerate(zip(file.symbols, file.ensembl_ids, strict=True)):
        place = place_of_id.get(ensembl_id, -1)
        if place < 0:
            place = place_of_symbol.get(symbol, -1)
            # The same symbol for another id is another gene.
            if place >= 0 and ensembl_id and vocabulary.ensembl_ids[place]:
                place = -1
        places[column] = place
    if (places < 0).all():
        raise UserError(
            f"{file.name} has no gene in common with the vocabulary of {len(vocabulary):,} genes (--vocabulary): it "
            f"has {', '.join(file.symbols[:NUM_SHOWN])}, ...; the vocabulary has "
            f"{', '.join(vocabulary.symbols[:NUM_SHOWN])}, ...\nName the genes by the same symbols or Ensembl ids."
        )
    return places


def _vocabulary_report(
    files: Sequence[FileGenes], places: Sequence[Int64[np.ndarray, " _"]], vocabulary: GeneVocabulary
) -> list[str]:
    found = np.zeros(len(vocabulary), dtype=bool)
    report = []
    for file, of_file in zip(files, places, strict=True):
        found[of_file[of_file >= 0]] = True
        lacking = np.flatnonzero(of_file < 0)
        if len(lacking):
            examples = [file.symbols[column] for column in lacking[:NUM_SHOWN]]
            report.append(
                f"{file.name}: {len(lacking):,} of {len(of_file):,} genes are not in the vocabulary and left out: "
                f"{_listed(examples, len(lacking))}"
            )
    absent = int((~found).sum())
    report.append(f"vocabulary: {found.sum():,} of {len(found):,} genes are measured; {absent:,} are in no file")
    return report


def _check_duplicates(
    file: FileGenes, places: Int64[np.ndarray, " columns"], duplicates: Literal["error", "sum"]
) -> int:
    """Number of genes with several columns."""
    known = np.flatnonzero(places >= 0)
    genes, times = np.unique(places[known], return_counts=True)
    repeated = genes[times > 1]
    if len(repeated) and duplicates == "error":
        pairs = []
        for gene in repeated[:NUM_SHOWN]:
            columns = np.flatnonzero(places == gene)[:2]
            named = [f"column {column} ({_named(file, column)})" for column in columns.tolist()]
            pairs.append(" and ".join(named))
        raise UserError(
            f"{file.name} has several columns for the same gene: {_listed(pairs, len(repeated), '; ')}.\n"
            "Drop those that are wrong, or give --duplicate-genes sum to add up their counts."
        )
    return len(repeated)


def _refuse_strangers(files: Sequence[FileGenes], places: Sequence[Int64[np.ndarray, " _"]]) -> None:
    """Every file must share a gene with the first, if only by way of others."""
    reached, waiting = set(places[0].tolist()), list(range(1, len(files)))
    while near := [number for number in waiting if not reached.isdisjoint(places[number].tolist())]:
        reached.update(*(places[number].tolist() for number in near))
        waiting = [number for number in waiting if number not in near]
    if waiting:
        stranger = files[waiting[0]]
        mine, others = (", ".join(file.symbols[:NUM_SHOWN]) for file in (stranger, files[0]))
        raise UserError(
            f"{stranger.name} has no gene in common with {files[0].name}: it has {mine}, ..., not {others}, ...\n"
            "Name the genes of all files alike, or prepare them apart."
        )


def _named(file: FileGenes, column: int) -> str:
    return ", ".join(dict.fromkeys(filter(None, (file.symbols[column], file.ensembl_ids[column]))))


def _listed(examples: Sequence[str], number: int, separator: str = ", ") -> str:
    more = f"{separator}and {number - len(examples):,} more" if number > len(examples) else ""
    return separator.join(examples) + more


def load_vocabulary(path: Path) -> GeneVocabulary:
    """Of --vocabulary: a genes.parquet, or the folder of a checkpoint or of shards."""
    if not path.exists():
        raise UserError(f"there is no {path} (--vocabulary): give a genes.parquet, a checkpoint or a folder of shards")
    return GeneVocabulary.load(path)
