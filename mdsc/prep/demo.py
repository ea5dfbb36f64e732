"""The embedded cells: scanpy's 700 PBMCs of 765 genes, with their counts recovered exactly.

Source: 10x Genomics' 68k PBMCs (Zheng et al., Nature Communications 8, 14049, 2017), as reduced by scanpy. Its `.raw`
holds log(1 + count * s) with a factor s per cell, rounded to three decimals.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdsc.atomic import replacing
from mdsc.config.flags import parse_flags
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.h5ad import H5adConfig, prepare_h5ad, summary

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

HELD_OUT = 120
SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    output_dir: Path = Path("data/demo")
    """Folder for pbmc700.h5ad (all cells) and shards/ (580 for training, 120 held out)."""


def prepare_demo(config: DemoConfig) -> ShardFolder:
    """Write pbmc700.h5ad, with the column `split` in obs, and the shards."""
    cells = embedded_cells()
    path = config.output_dir / "pbmc700.h5ad"
    with replacing(path) as beside:
        cells.write_h5ad(beside, compression="gzip")
    return prepare_h5ad(
        H5adConfig(
            inputs=(path,),
            output_dir=config.output_dir / "shards",
            condition_columns=("bulk_labels",),
            split_column="split",
        )
    )


def embedded_cells() -> "AnnData":
    """The 700 cells: counts in X (CSR, int32); obs has bulk_labels (cell type), louvain, phase and split."""
    import pandas as pd
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scanpy and its dependencies about each other
        try:
            import scanpy
        except ImportError as error:
            raise UserError("the embedded cells come with scanpy: pip install 'mdsc[demo]'") from error
        reduced = scanpy.datasets.pbmc68k_reduced()
    order = np.random.default_rng(SPLIT_SEED).permutation(reduced.n_obs)
    split = np.full(reduced.n_obs, "train", dtype=object)
    split[order[:HELD_OUT]] = "heldout"
    obs = reduced.obs[["bulk_labels", "louvain", "phase"]].assign(split=split)
    var = pd.DataFrame(index=reduced.raw.var_names.astype(str))
    return AnnData(counts_of_logs(reduced.raw.X), obs=obs, var=var)


def counts_of_logs(logs: "sp.csr_matrix", decimals: int = 3) -> "sp.csr_matrix":
    """Integer counts of log(1 + count * s), where every cell has a factor s and some count of 1.

    Asserts that the counts found give every value back within its rounding.
    """
    import scipy.sparse as sp

    logs = sp.csr_matrix(logs, dtype=np.float64, copy=True)
    logs.eliminate_zeros()
    logs.sort_indices()
    scaled = np.expm1(logs.data)
    lengths, starts = np.diff(logs.indptr), logs.indptr[:-1]
    assert lengths.min() > 0, "a cell without counts has no factor"
    counts = np.rint(scaled / np.repeat(np.minimum.reduceat(scaled, starts), lengths))
    # The lowest value is rounded too: a cell's factor is known better from all its counts together.
    factor = np.add.reduceat(scaled, starts) / np.add.reduceat(counts, starts)
    error = np.abs(np.log1p(counts * np.repeat(factor, lengths)) - logs.data)
    assert error.max() < 1.1 * 10.0**-decimals, f"off by {error.max():.2g}: these are no logarithms of scaled counts"
    return sp.csr_matrix((counts.astype(np.int32), logs.indices, logs.indptr), logs.shape)


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/demo.py`"""
    config = parse_flags(DemoConfig, argv, __doc__)
    folder = prepare_demo(config)
    print(f"{config.output_dir / 'pbmc700.h5ad'}: 700 PBMCs of scanpy.datasets, counts recovered from their logarithms")
    print(summary(folder))
