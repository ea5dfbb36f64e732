"""Files of embeddings: a copy of an h5ad file with those of its cells and genes, or a table of the model's genes."""

import time
from collections.abc import Callable
from pathlib import Path

from mdsc.atomic import replacing
from mdsc.checkpoint import Checkpoint, given_or_newest
from mdsc.errors import UserError
from mdsc.progress import lines_on_console
from mdsc.sampling.anndata_cells import open_cells
from mdsc.sampling.anndata_embedding import KEY, embedded, embedding_of_genes, embedding_settings, gene_embeddings
from mdsc.sampling.anndata_files import check_output
from mdsc.sampling.annotated_copy import annotated_copy
from mdsc.sampling.embedding import layer_of
from mdsc.sampling.embedding_command import EmbedConfig
from mdsc.sampling.loaded_model import opened


def embed(config: EmbedConfig) -> None:
    say = lines_on_console()
    _check(config)
    folder = given_or_newest(config.checkpoint, say)
    checkpoint = opened(folder)
    layer = layer_of(checkpoint.model.config, config.layer)
    if config.output is not None:
        _embed_cells(config, checkpoint, layer, say)
    if config.gene_embeddings is not None:
        _write_genes(config.gene_embeddings, checkpoint, layer)
        say(f"wrote {config.gene_embeddings}: {len(checkpoint.vocabulary):,} genes, layer {layer}")


def _check(config: EmbedConfig) -> None:
    if (config.input is None) != (config.output is None):
        raise UserError("--input and --output go together: the cells, and the file to write them to.")
    if config.output is None and config.gene_embeddings is None:
        raise UserError("nothing to do: give --input cells.h5ad --output embedded.h5ad, or --gene-embeddings.")
    if config.output is not None:
        check_output(config.output, config.input)
    if config.gene_embeddings is not None and config.gene_embeddings.suffix not in (".parquet", ".npz"):
        raise UserError(f"--gene-embeddings: {config.gene_embeddings} ends neither in .parquet nor in .npz.")
    if not config.key or "/" in config.key:
        raise UserError(f"--key is {config.key!r}; it takes a name without a slash, e.g. {KEY}.")


def _embed_cells(config: EmbedConfig, checkpoint: Checkpoint, layer: str, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    with open_cells(
        checkpoint, config.input, layer=config.counts_layer, condition=None, name=str(config.input), say=say
    ) as cells:
        genes = embedding_of_genes(cells, layer)
        with annotated_copy(config.input, config.output) as copy:
            rows = copy.add_rows("obsm", config.key, len(cells), genes.shape[1])
            for place, values in embedded(cells, layer, config.batch_size, show_progress=True):
                rows[place] = values
            if config.counts_layer != "raw":
                copy.add_rows("varm", config.key, *genes.shape)[:] = genes
            copy.add_uns("mdsc_embedding", embedding_settings(cells, layer, config.counts_layer))
    seconds = time.monotonic() - started
    say(f"wrote {config.output}: obsm[{config.key!r}], layer {layer}, {genes.shape[1]} features ({seconds:.0f} s)")


def _write_genes(path: Path, checkpoint: Checkpoint, layer: str) -> None:
    import numpy as np

    table = gene_embeddings(checkpoint, layer)
    with replacing(path) as beside:
        if path.suffix == ".parquet":
            table.to_parquet(beside)
            return
        # Text as fixed-width strings: what can be read without unpickling.
        np.savez_compressed(
            beside,
            gene_symbol=table.index.to_numpy(dtype=str),
            ensembl_id=table["ensembl_id"].to_numpy(dtype=str),
            embedding=table.drop(columns="ensembl_id").to_numpy(dtype=np.float32),
        )
