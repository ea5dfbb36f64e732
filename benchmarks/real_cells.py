"""Real cells for the benchmarks: the embedded ones, or files of `shared/data` beside the repository, split and cut to
variable genes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from mdsc.atomic import replacing
from mdsc.data.anndata_counts import open_counts, read_counts
from mdsc.prep.demo import embedded_cells
from mdsc.prep.h5ad import H5adConfig, prepare_h5ad

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

ROOT = Path(__file__).resolve().parents[1]
TEST_SHARE = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class SplitCells:
    """Where the files of one data set are, and their sizes."""

    train: Path
    test: Path
    shards: Path
    size: dict[str, int]


def shared_file(name: str) -> Path | None:
    """`shared/data/name` in the folder that the repository is in, or in the one above."""
    for parent in (ROOT.parent, ROOT.parent.parent):
        if (path := parent / "shared" / "data" / name).is_file():
            return path
    return None


def split_paths(folder: Path, size: dict[str, int]) -> SplitCells:
    return SplitCells(folder / "train.h5ad", folder / "test.h5ad", folder / "shards", size)


def prepare_split(source: Path, folder: Path, num_genes: int | None) -> dict[str, int]:
    """Write train.h5ad, test.h5ad and shards of train.h5ad into `folder`.

    num_genes: that many of the most variable ones, in which the test cells have no say; None: all that any cell has.
    """
    import pandas as pd
    from anndata import AnnData

    counts = read_counts(source).counts
    with open_counts(source) as opened:
        cell_names, gene_names = opened.obs.index.astype(str), opened.var.index.astype(str)
    order = np.random.default_rng(SPLIT_SEED).permutation(counts.shape[0])
    num_test = round(TEST_SHARE * len(order))
    train, test = np.sort(order[num_test:]), np.sort(order[:num_test])
    genes = np.unique(counts.nonzero()[1]) if num_genes is None else most_variable(counts[train], num_genes)
    cells = AnnData(counts[:, genes], obs=pd.DataFrame(index=cell_names), var=pd.DataFrame(index=gene_names[genes]))
    return write_split(cells[train], cells[test], folder)


def prepare_embedded(folder: Path) -> dict[str, int]:
    """The same of the demo's cells, with all their genes and the split that the demo has."""
    cells = embedded_cells()
    is_train = (cells.obs["split"] == "train").to_numpy()
    return write_split(cells[is_train], cells[~is_train], folder)


def write_split(train: "AnnData", test: "AnnData", folder: Path) -> dict[str, int]:
    """Write train.h5ad, test.h5ad and shards of the first into `folder`, and tell their sizes."""
    paths = split_paths(folder, {})
    for path, cells in ((paths.train, train), (paths.test, test)):
        with replacing(path) as beside:
            cells.write_h5ad(beside, compression="gzip")
    prepare_h5ad(H5adConfig(inputs=(paths.train,), output_dir=paths.shards))
    return {"train": train.n_obs, "test": test.n_obs, "genes": train.n_vars}


def most_variable(counts: "sp.csr_matrix", num_genes: int) -> Int64[np.ndarray, " genes"]:
    """The columns of greatest variance of log1p(counts per 10,000), ascending; all where there are no more."""
    variance = log_variance(counts)
    return np.sort(np.argsort(-variance, kind="stable")[:num_genes]).astype(np.int64)


def log_variance(counts: "sp.csr_matrix") -> Float64[np.ndarray, " genes"]:
    """Variance over cells of log1p(counts per 10,000) of each gene."""
    import scipy.sparse as sp

    depth = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    values = (sp.diags(1e4 / depth) @ counts.astype(np.float64)).tocsr()
    values.data = np.log1p(values.data)
    mean = np.asarray(values.mean(axis=0)).ravel()
    return np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
