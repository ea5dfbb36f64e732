"""`mdsc embed`: a vector for each cell and gene, from a trained model.

mdsc embed --checkpoint runs/a --input cells.h5ad --output embedded.h5ad
mdsc embed --checkpoint runs/a --gene-embeddings genes.parquet
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdsc.config.flags import parse_flags


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    input: Path | None = None
    """h5ad file with raw counts; read a chunk of cells at a time."""
    output: Path | None = None
    """h5ad file to write: a copy of the input with obsm[KEY], and varm[KEY] for its genes."""
    gene_embeddings: Path | None = None
    """.parquet or .npz file to write: a vector for each gene of the model's vocabulary."""
    checkpoint: str | None = None
    """Checkpoint folder, or user/name[@revision] of the hub; by default the newest run in runs/."""
    layer: str | None = None
    """Where of the network: factors (the default where there are some), state, last, or the number of a block (0: what
    goes into the first)."""
    counts_layer: str | None = None
    """Where the counts are: the name of a layer, or "raw"; by default X."""
    key: str = "X_mdsc"
    """Name in obsm and varm."""
    batch_size: int | None = None
    """Cells at once; by default what suits the device."""


def main(argv: Sequence[str]) -> None:
    """Run the command; UserError for a user's mistake, before anything is written."""
    config = parse_flags(EmbedConfig, argv, __doc__)
    from mdsc.sampling.embedded_files import embed  # torch: seconds that --help and a wrong flag need not take

    embed(config)
