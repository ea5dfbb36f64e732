"""Embeddings of the cells of an AnnData: obsm["X_mdsc"], with varm["X_mdsc"] for its genes.

uns["mdsc_embedding"] has how they were made; `mdsc.sampling.embedding` what the layers are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64

from mdsc.checkpoint import Checkpoint
from mdsc.data.anndata_counts import read_counts
from mdsc.data.batch import batch_from_csr
from mdsc.data.genes import known_columns
from mdsc.errors import UserError
from mdsc.progress import CellProgress, say_nothing
from mdsc.sampling.anndata_cells import ModelCells, open_cells
from mdsc.sampling.embedding import embed_cells, embed_genes, layer_of
from mdsc.sampling.loaded_model import opened, provenance
from mdsc.sampling.pass_size import PassOptions, pass_size

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

KEY = "X_mdsc"


def embed_anndata(
    checkpoint: str | Path | Checkpoint,
    adata: "AnnData",
    *,
    layer: str | None = None,
    counts_layer: str | None = None,
    key: str = KEY,
    batch_size: int | None = None,
    copy: bool = True,
    name: str = "the AnnData",
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
) -> "AnnData":
    """Embed cells and genes: obsm[key] (cells, width) and varm[key] (genes, width; NaN for genes unknown to the model).

    Args:
        checkpoint: folder, or a checkpoint that is loaded.
        adata: raw counts in X or `counts_layer`; genes by symbol or Ensembl id, in any order.
        layer: "factors" (where the model has them, the default), "state", "last", or the number of a block, "0" for
            what goes into the first.
        counts_layer: the name of a layer, or "raw" (then varm gets no genes).
        batch_size: cells at once; by default what suits the device. A cell's embedding depends on no other cell.
        copy: False adds to `adata` itself.
    """
    checkpoint = opened(checkpoint)
    layer = layer_of(checkpoint.model.config, layer)
    with open_cells(checkpoint, adata, layer=counts_layer, condition=None, name=name, say=say or say_nothing) as cells:
        blocks = [rows for _, rows in embedded(cells, layer, batch_size, show_progress=show_progress)]
        genes = embedding_of_genes(cells, layer)
    result = adata.to_memory() if adata.isbacked else adata.copy() if copy else adata
    result.obsm[key] = np.concatenate(blocks)
    if counts_layer != "raw":
        result.varm[key] = genes
    result.uns["mdsc_embedding"] = embedding_settings(cells, layer, counts_layer)
    return result


def embedded(
    cells: ModelCells, layer: str, batch_size: int | None, *, show_progress: bool = False
) -> Iterator[tuple[slice, Float32[np.ndarray, "cells width"]]]:
    """Rows and their embeddings, a block of cells at a time."""
    model, tokenizer = cells.checkpoint.model, cells.checkpoint.tokenizer
    size = _cells_at_once(cells.checkpoint, len(cells.columns), batch_size)
    with CellProgress("embedding", len(cells), show=show_progress, lines=True) as progress:
        for batch in cells.batches(cells.columns, size):
            start = int(batch.cell_index[0])
            rows = slice(start, start + len(batch))
            yield rows, embed_cells(model, tokenizer, batch.to(model.device), layer).cpu().numpy()
            progress.done(rows.stop)


def embedding_of_genes(cells: ModelCells, layer: str) -> Float32[np.ndarray, "genes width"]:
    """Of each gene of the source, NaN where the model does not know it."""
    known = embed_genes(cells.checkpoint.model, layer).cpu().numpy()
    genes = np.full((len(cells.places), known.shape[1]), np.nan, dtype=np.float32)
    genes[cells.places >= 0] = known[cells.places[cells.places >= 0]]
    return genes


def gene_embeddings(checkpoint: str | Path | Checkpoint, layer: str | None = None) -> "pd.DataFrame":
    """Of all genes of the model's vocabulary: gene_symbol as index, ensembl_id ("" if unknown), then "0", "1", ..."""
    import pandas as pd

    checkpoint = opened(checkpoint)
    values = embed_genes(checkpoint.model, layer_of(checkpoint.model.config, layer)).cpu().numpy()
    vocabulary = checkpoint.vocabulary
    index = pd.Index(vocabulary.symbols, name="gene_symbol")
    table = pd.DataFrame(values, index=index, columns=list(map(str, range(values.shape[1]))))
    table.insert(0, "ensembl_id", list(vocabulary.ensembl_ids))
    return table


def embedding_settings(cells: ModelCells, layer: str, counts_layer: str | None) -> dict:
    return {
        "task": "embed",
        "layer": layer,
        "counts": counts_layer or "X",
        "genes_modelled": len(cells.columns),
        "genes_not_modelled": len(cells.places) - len(cells.columns),
        **provenance(cells.checkpoint),
    }


@dataclass(frozen=True, eq=False)
class CellDataset:
    """Cells that `MdscEmbedder.process_data` has matched to a model's genes."""

    counts: "sp.csr_matrix"
    """(cells, genes the model knows)."""
    places: Int64[np.ndarray, " genes"]
    """Of these genes in the vocabulary, ascending."""

    def __len__(self) -> int:
        return self.counts.shape[0]


class MdscEmbedder:
    """A model with the two calls that helical's models have, so that it can stand where these do:

    embedder = MdscEmbedder("runs/a")
    embeddings = embedder.get_embeddings(embedder.process_data(adata))
    """

    def __init__(self, checkpoint: str | Path | Checkpoint, *, layer: str | None = None, batch_size: int | None = None):
        self.checkpoint = opened(checkpoint)
        self.layer = layer_of(self.checkpoint.model.config, layer)
        self.batch_size = batch_size

    def process_data(self, adata: "AnnData", gene_names: str = "index") -> CellDataset:
        """Raw counts of X. gene_names: the column of var with symbols or Ensembl ids, or "index"."""
        cells = read_counts(adata)
        if gene_names != "index" and gene_names not in cells.var:
            raise UserError(f"gene_names is {gene_names!r}, but adata.var has no such column.")
        names = cells.var.index if gene_names == "index" else cells.var[gene_names]
        places = self.checkpoint.vocabulary.match(names.astype(str).tolist(), "the AnnData")
        columns = known_columns(places)
        return CellDataset(cells.counts[:, columns], places[columns])

    def get_embeddings(self, dataset: CellDataset) -> Float32[np.ndarray, "cells width"]:
        """One row for each cell."""
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        size = _cells_at_once(self.checkpoint, len(dataset.places), self.batch_size)
        blocks = []
        for start in range(0, len(dataset), size):
            batch = batch_from_csr(dataset.counts[start : start + size], dataset.places, tokenizer, first_cell=start)
            blocks.append(embed_cells(model, tokenizer, batch.to(model.device), self.layer).cpu().numpy())
        return np.concatenate(blocks)


def _cells_at_once(checkpoint: Checkpoint, num_genes: int, batch_size: int | None) -> int:
    """A layer is of all genes at once."""
    return pass_size(checkpoint, num_genes, PassOptions(batch_size=batch_size, genes_per_pass=num_genes)).cells
