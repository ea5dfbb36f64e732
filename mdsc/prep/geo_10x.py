"""GEO's 10x files of a Perturb-seq experiment (GSE90546): a matrix, genes, barcodes, and each cell's guide.

    GSM2406681_10X010_matrix.mtx.txt.gz      genes x cells, MatrixMarket
    GSM2406681_10X010_genes.tsv.gz           Ensembl id, symbol
    GSM2406681_10X010_barcodes.tsv.gz        one barcode a line, with the lane behind a dash: AAACCTGAGAAACCAT-1
    GSM2406681_10X010_cell_identities.csv.gz cell BC, guide identity, read count, UMI count, coverage, good coverage,
                                             number of cells

A folder may hold several samples, told apart by what stands before the parts' names, or one.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdsc.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PARTS = ("matrix.mtx", "genes.tsv", "barcodes.tsv", "cell_identities.csv")
GUIDE, GOOD, NUMBER, BARCODE = "guide identity", "good coverage", "number of cells", "cell BC"


@dataclass(frozen=True)
class Sample:
    """The files of one sample, by the names of `PARTS`."""

    name: str
    files: dict[str, Path]


def find_samples(folder: Path) -> list[Sample]:
    """All samples of a folder; UserError where one lacks a file."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.replace("features.tsv", "genes.tsv")
        for part in PARTS:
            if part in name and not name.startswith("."):
                found.setdefault(name.partition(part)[0].strip("_.-"), {})[part] = path
    if not found:
        raise UserError(f"{folder} holds no 10x files: {', '.join(PARTS)} (each may end in .gz).")
    for name, parts in found.items():
        if lacking := [part for part in PARTS if part not in parts]:
            raise UserError(f"{folder}: sample {name or 'without a name'} lacks {' and '.join(lacking)}.")
    return [Sample(name, parts) for name, parts in found.items()]


def read_geo(folder: Path, say: Callable[[str], None]) -> "AnnData":
    """The cells that have one guide with good coverage: X raw counts, obs.perturbation the guide, obs.batch sample and
    lane, var.gene_name the symbol."""
    import anndata

    samples = [_read_sample(sample, say) for sample in find_samples(folder)]
    names = [sample.name for sample in find_samples(folder)]
    for name, sample in zip(names, samples, strict=True):
        if list(sample.var_names) != list(samples[0].var_names):
            raise UserError(f"{folder}: samples {names[0]} and {name} have other genes: prepare one of them alone.")
    if len(samples) == 1:
        return samples[0]
    for name, sample in zip(names, samples, strict=True):
        sample.obs_names = [f"{name}:{cell}" for cell in sample.obs_names]
        sample.obs["batch"] = [f"{name}:{lane}" for lane in sample.obs["batch"]]
    joined = anndata.concat(samples)
    joined.var = samples[0].var
    return joined


def _read_sample(sample: Sample, say: Callable[[str], None]) -> "AnnData":
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    matrix = sp.csr_matrix(_matrix(sample.files["matrix.mtx"]).T)
    genes = _table(sample.files["genes.tsv"], sep="\t", header=None)
    barcodes = _table(sample.files["barcodes.tsv"], sep="\t", header=None)[0].astype(str)
    if genes.shape[1] < 2 or matrix.shape != (len(barcodes), len(genes)):
        raise UserError(
            f"{sample.files['matrix.mtx']} has {matrix.shape[1]:,} genes x {matrix.shape[0]:,} cells, where "
            f"{sample.files['genes.tsv'].name} lists {len(genes):,} and {sample.files['barcodes.tsv'].name} "
            f"{len(barcodes):,}: copy them again."
        )
    guides = _guides(sample.files["cell_identities.csv"])
    rows = np.flatnonzero(barcodes.isin(guides.index).to_numpy())
    barcodes = barcodes.iloc[rows]
    if not len(rows):
        raise UserError(f"{sample.files['cell_identities.csv']} and the barcodes have no good cell in common.")
    say(
        f"{sample.name or sample.files['matrix.mtx'].parent.name}: {len(rows):,} of {matrix.shape[0]:,} cells have one "
        "guide with good coverage"
    )
    lanes = [barcode.rpartition("-")[2] if "-" in barcode else "1" for barcode in barcodes]
    obs = pd.DataFrame({"perturbation": guides.loc[barcodes].to_numpy(), "batch": lanes}, index=barcodes.tolist())
    var = pd.DataFrame({"gene_name": genes[1].astype(str).tolist()}, index=genes[0].astype(str).tolist())
    return AnnData(matrix[rows], obs=obs, var=var)


def _guides(path: Path) -> "pd.Series":
    """The guide of each barcode that is one cell with good coverage."""
    table = _table(path)
    if lacking := [name for name in (BARCODE, GUIDE, GOOD, NUMBER) if name not in table]:
        raise UserError(f"{path} has no column {lacking[0]!r}: it has {', '.join(map(str, table.columns))}.")
    good = table[GOOD].astype(str).str.strip().str.lower().isin(["true", "1"]) & (table[NUMBER] == 1)
    return table[good].drop_duplicates(BARCODE).set_index(BARCODE)[GUIDE].astype(str)


def _matrix(path: Path):
    from scipy.io import mmread

    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            return mmread(file)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"{path} is no MatrixMarket file, or damaged ({str(error).splitlines()[0]}).") from error


def _table(path: Path, **options) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(path, **options)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}).") from error
