"""The genes of a perturbation task: those that were perturbed, and the most variable ones of the training cells alone.

What varies among test cells is not known when a model is trained: genes that are chosen by all cells, as those of the
published files, tell something of the test.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64

from mdsc.data.log_expression import TARGET_DEPTH
from mdsc.data.perturbations import perturbed_genes
from mdsc.errors import UserError
from mdsc.prep.perturbation_names import counted

if TYPE_CHECKING:
    import scipy.sparse as sp


def variable_genes(
    counts: "sp.csr_matrix",
    is_training: Bool[np.ndarray, " cells"],
    genes: Sequence[str],
    perturbation: np.ndarray,
    num_genes: int | None,
    say: Callable[[str], None],
) -> Int64[np.ndarray, " chosen"]:
    """Columns of the genes to keep, ascending: all where `num_genes` is None or there are no more."""
    targets = {gene for name in set(perturbation) for gene in perturbed_genes(name)}
    if absent := sorted(targets - set(genes)):
        say(f"{len(absent):,} of {len(targets):,} perturbed genes are not among those measured: {counted(absent)}")
    if num_genes is None or num_genes >= len(genes):
        return np.arange(len(genes))
    kept = np.array([gene in targets for gene in genes])
    if kept.sum() > num_genes:
        raise UserError(f"--num-genes {num_genes}: {kept.sum():,} measured genes were perturbed; give as many or more.")
    dispersion = _dispersion(counts[np.flatnonzero(is_training)])
    # A gene without counts has no dispersion; ties go to the first, so that the choice is the same everywhere.
    rank = np.where(kept, np.inf, np.nan_to_num(dispersion, nan=-np.inf, neginf=-np.inf))
    return np.sort(np.argsort(-rank, kind="stable")[:num_genes])


def _dispersion(counts: "sp.csr_matrix") -> np.ndarray:
    """Normalised dispersion of each gene's log expression (Satija et al. 2015, as scanpy's flavour "seurat")."""
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scanpy and its dependencies about each other
        try:
            import scanpy
        except ImportError as error:
            raise UserError("--num-genes chooses genes by scanpy: pip install 'mdsc[demo]'.") from error
        cells = AnnData(counts.astype(np.float32))
        scanpy.pp.normalize_total(cells, target_sum=TARGET_DEPTH)
        scanpy.pp.log1p(cells)
        chosen = scanpy.pp.highly_variable_genes(cells, flavor="seurat", n_top_genes=1, inplace=False)
    return chosen["dispersions_norm"].to_numpy(dtype=np.float64)
