"""Cells to score and to fit baselines on, out of an h5ad file or a folder of shards, in the genes of a vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int64

from mdsc.data.anndata_counts import open_counts
from mdsc.data.genes import GeneVocabulary
from mdsc.data.shards import ShardFolder


@dataclass(frozen=True, eq=False)
class SourceCells:
    """Cells with the genes that the vocabulary knows."""

    name: str
    """Where they are from, as messages say it."""
    counts: sp.csr_matrix
    """(cells, genes) raw counts."""
    places: Int64[np.ndarray, " genes"]
    """Place of each column in the vocabulary."""
    conditions: dict[str, np.ndarray]
    """(cells,) of str each."""
    cells_in_source: int
    unknown_genes: tuple[str, ...]
    """Genes of the source that the vocabulary does not know."""

    def restricted(self, places: Int64[np.ndarray, " shared"]) -> sp.csr_matrix:
        """Counts of these genes, in this order; each must be there."""
        column_of = {place: column for column, place in enumerate(self.places.tolist())}
        return self.counts[:, [column_of[place] for place in places.tolist()]]

    def on(self, places: Int64[np.ndarray, " shared"]) -> "SourceCells":
        """The same cells over these genes, in this order; each must be there."""
        return replace(self, counts=self.restricted(places), places=places)

    def of_rows(self, rows: Int64[np.ndarray, " some"]) -> "SourceCells":
        conditions = {name: values[rows] for name, values in self.conditions.items()}
        return replace(self, counts=self.counts[rows], conditions=conditions)

    def in_vocabulary(self, places: Int64[np.ndarray, " shared"], num_genes: int) -> sp.csr_matrix:
        """Counts (cells, num_genes) of the whole vocabulary, nothing but zeros where a gene is not in `places`."""
        counts = self.restricted(places).tocoo()
        shape = (counts.shape[0], num_genes)
        return sp.csr_matrix((counts.data, (counts.row, places[counts.col])), shape=shape)


def read_h5ad(
    path: str | Path,
    vocabulary: GeneVocabulary,
    *,
    layer: str | None = None,
    conditions: Sequence[str] = (),
    most: int,
) -> SourceCells:
    """At most `most` cells, drawn evenly, in the order of the file; memory holds them and one chunk.

    conditions: columns of obs; one that is not there is left out.
    """
    with open_counts(path, layer) as source:
        places = vocabulary.match_var(source.var, source.name)
        known = np.flatnonzero(places >= 0)
        rows = _drawn(len(source.obs), most)
        parts, first = [], 0
        for chunk in source.chunks():
            inside = rows[(rows >= first) & (rows < first + chunk.shape[0])] - first
            parts.append(chunk[inside][:, known])
            first += chunk.shape[0]
        obs = source.obs.iloc[rows]
        names = source.var.index.astype(str)
        return SourceCells(
            name=source.name,
            counts=sp.vstack(parts, format="csr"),
            places=places[known],
            conditions={name: obs[name].astype(str).to_numpy() for name in conditions if name in obs},
            cells_in_source=len(source.obs),
            unknown_genes=tuple(names[places < 0]),
        )


def read_shards(
    folder: ShardFolder, split: str, vocabulary: GeneVocabulary, *, conditions: Sequence[str] = (), most: int
) -> SourceCells:
    """At most `most` cells of a split, drawn evenly from as few row groups, drawn evenly, as hold that many."""
    refs = folder.row_groups(split)
    chosen, num_rows = [], 0
    for index in np.random.default_rng(0).permutation(len(refs)):
        if num_rows >= most:
            break
        chosen.append(index)
        num_rows += refs[index].rows
    columns = [name for name in conditions if name in folder.condition_columns]
    groups = [folder.read(refs[index], columns) for index in sorted(chosen)]
    shape = (len(folder.vocabulary),)
    counts = [sp.csr_matrix((g.counts, g.gene_index, g.indptr), (len(g.cell_ids), *shape)) for g in groups]
    rows = _drawn(num_rows, most)
    places = vocabulary.match(folder.vocabulary.symbols, str(folder.path))
    known = np.flatnonzero(places >= 0)
    return SourceCells(
        name=f"{folder.path} ({split})",
        counts=sp.vstack(counts, format="csr")[rows][:, known],
        places=places[known],
        conditions={name: np.concatenate([g.conditions[name] for g in groups])[rows] for name in columns},
        cells_in_source=folder.num_cells(split),
        unknown_genes=tuple(folder.vocabulary.symbols[place] for place in np.flatnonzero(places < 0)),
    )


def _drawn(number: int, most: int) -> Int64[np.ndarray, " rows"]:
    """Ascending indices of at most `most` of `number` things; the same at every call."""
    return np.sort(np.random.default_rng(0).permutation(number)[:most]).astype(np.int64)
