"""Cells of an AnnData or an h5ad file as a model reads them, a bounded number at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from mdsc.checkpoint import Checkpoint
from mdsc.data.anndata_counts import CHUNK_ROWS, CountSource, open_counts
from mdsc.data.batch import CellBatch, batch_from_csr
from mdsc.data.condition_levels import near_names
from mdsc.data.genes import GeneVocabulary, known_columns
from mdsc.errors import UserError
from mdsc.sampling.conditions import CellConditions, KnownConditions

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class ModelCells:
    """An opened source of counts, matched to a model's genes and conditions."""

    checkpoint: Checkpoint
    source: CountSource
    places: Int64[np.ndarray, " genes"]
    """Place in the vocabulary of each gene of the source, -1 where it has none."""
    conditions: CellConditions | None
    """None leaves them unknown to the model."""

    def __len__(self) -> int:
        return len(self.source.obs)

    @property
    def columns(self) -> Int64[np.ndarray, " known"]:
        """Columns of the genes that the model knows, in the order of the vocabulary."""
        return known_columns(self.places)

    def columns_of(self, names: Sequence[str], flag: str) -> Int64[np.ndarray, " chosen"]:
        """Columns of these genes, by symbol or Ensembl id, in the order of the vocabulary; `flag` names them."""
        names = list(dict.fromkeys(names))
        vocabulary = self.checkpoint.vocabulary
        places = vocabulary.match(names, flag)
        if unknown := [name for name, place in zip(names, places, strict=True) if place < 0]:
            near = near_names(unknown[0], vocabulary.symbols)
            raise UserError(f"{flag}: the model does not know {_some(unknown)}; {near}.")
        column = np.full(len(vocabulary), -1)
        column[self.places[self.columns]] = self.columns
        if missing := [name for name, place in zip(names, places, strict=True) if column[place] < 0]:
            raise UserError(f"{flag}: {self.source.name} has no gene {_some(missing)}; leave out what is not measured.")
        return column[np.sort(places)]

    def batches(self, columns: Int64[np.ndarray, " chosen"], size: int) -> Iterator[CellBatch]:
        """All cells in order, `size` at a time, of these columns alone: no other gene is tokenised or counted."""
        start = 0
        for chunk in self.source.chunks(max(size, CHUNK_ROWS)):
            for first in range(0, chunk.shape[0], size):
                block = chunk[first : first + size]
                rows = slice(start, start + block.shape[0])
                batch = batch_from_csr(
                    block[:, columns], self.places[columns], self.checkpoint.tokenizer, first_cell=start
                )
                yield batch if self.conditions is None else replace(batch, **self.conditions.block(rows))
                start = rows.stop


@contextmanager
def open_cells(
    checkpoint: Checkpoint,
    source: "AnnData | str | Path",
    *,
    layer: str | None,
    condition: Mapping[str, str] | None,
    name: str,
    say: Callable[[str], None],
) -> Iterator[ModelCells]:
    """Open the counts of an AnnData, or of a file, which is then read a chunk at a time; UserError where that fails.

    condition: level of a condition for all cells; others come from the columns of obs that are named like them. None
    leaves all conditions unknown to the model.
    """
    known = KnownConditions(checkpoint.model)
    obs_columns = () if condition is None else known.names
    with open_counts(source, layer, name, obs_columns=obs_columns) as counts:
        places = checkpoint.vocabulary.match_var(counts.var, counts.name)
        conditions = None if condition is None else known.of_cells(counts.obs, condition, say)
        say(described(counts, places, checkpoint.vocabulary, "left out"))
        yield ModelCells(checkpoint, counts, places, conditions)


def described(
    source: CountSource, places: Int64[np.ndarray, " genes"], vocabulary: GeneVocabulary, unknown_are: str
) -> str:
    """Cells and genes of a source in a line. unknown_are: what becomes of genes that the model does not know."""
    text = f"{source.name}: {len(source.obs):,} cells x {len(places):,} genes"
    if column := vocabulary.naming_column(source.var):
        text += f", named by var[{column!r}]"
    unknown = source.var.index[places < 0].astype(str)
    if len(unknown) == 0:
        return f"{text}, all of which the model knows"
    some = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    return f"{text}; {len(unknown):,} are unknown to the model, {unknown_are} ({some})"


def listed_genes(entries: Sequence[str], flag: str) -> list[str]:
    """Names of genes, where an entry may be a text file with one name a line."""
    names = []
    for entry in entries:
        path = Path(entry)
        if path.is_file():
            names += genes_in_file(path, flag)
        elif "/" in entry or path.suffix in (".txt", ".csv", ".tsv"):
            raise UserError(f"{flag}: there is no file {path}.")
        else:
            names.append(entry)
    return names


def genes_in_file(path: Path, flag: str) -> list[str]:
    """The names in a text file with one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: cannot read {path} ({error}).") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{flag}: {path} lists no gene.")
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
