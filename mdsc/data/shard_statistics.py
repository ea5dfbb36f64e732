"""What a trainer wants to know of the training cells before it starts: token frequencies and gene vectors.

The gene vectors are the right singular vectors of A, log1p of the counts with each gene's mean taken off. Depth is left
in: it is a factor of the cell like any other. A is never built. The randomised Nystroem method (Halko, Martinsson &
Tropp 2011, "Finding structure with randomness", algorithm 5.5, on the covariance) needs products of C = A^T A with a
thin matrix Q only, and these are sums over row groups of sparse matrices:

    C Q = L^T (L Q) - cells * mean (mean^T Q)        L: uncentred, mean: of each gene

One pass counts tokens, one takes moments, and each product takes another: all but the last sharpen the range (subspace
iteration), the last one gives the factorisation. Memory is O(genes * rank) and one row group.

Of few cells a fit has learned each one's own noise. Then the same is done again without each fold of them (`folds`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from mdsc.data.folds import NO_FOLD, NUM_FOLDS, folds_of_rows
from mdsc.data.keyed_streams import Purpose, stream, uniforms
from mdsc.data.quarantine import Quarantine
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import Tokenizer
from mdsc.data.validation_split import num_validation_rows, split_rows

OVERSAMPLE = 16
NUM_PRODUCTS = 3
MANY_CELLS = 10_000
"""From here on a cell's own share in a fit (about rank / cells of its variance) is not worth the fits without it."""


@dataclass(frozen=True, eq=False)
class CellFactors:
    """Centre and principal directions of some training cells; G genes."""

    gene_mean: Float64[np.ndarray, " genes"]
    """Mean of log1p(count) of each gene."""
    gene_sd: Float64[np.ndarray, " genes"]
    """Standard deviation of the same."""
    gene_vectors: Float64[np.ndarray, "genes rank"]
    """Right singular vectors of centred log1p(count), each times its singular value / sqrt(cells): the columns' squared
    lengths are the variances along them, descending. Zero columns where the cells have fewer dimensions."""


@dataclass(frozen=True, eq=False)
class ShardStatistics:
    """Of `num_cells` training cells; G genes, V tokens."""

    num_cells: int
    token_frequency: Float64[np.ndarray, "genes tokens"]
    """Cells that have this token at this gene; rows sum to num_cells, token 0 being the cells without a count."""
    token_mean_count: Float64[np.ndarray, " tokens"]
    """Mean count behind each token, NaN where no cell has it: for `Tokenizer.with_values`."""
    mean_count: Float64[np.ndarray, " genes"]
    """Of the cells that were measured for a gene. That of `genes.parquet` is of the validation cells, too."""
    factors: CellFactors
    """Of all of them."""
    without_fold: tuple[CellFactors, ...]
    """Of all but those of fold 1, 2, ...; empty where there are MANY_CELLS, or where it was not asked for."""


def shard_statistics(
    folder: ShardFolder,
    tokenizer: Tokenizer,
    *,
    rank: int,
    validation_fraction: float,
    cross_fit: bool = True,
    max_cells: int = 50_000,
    seed: int = 0,
    quarantine: Quarantine | None = None,
) -> ShardStatistics:
    """Statistics of split "train" without its validation cells.

    Where there are more than `max_cells`, whole row groups are taken at even distances (shards are often sorted by
    plate) until there are about as many. `seed` is that of the random sketch. Row groups that are in quarantine, or are
    put there because they are corrupt, are left out; without one, corrupt ones are errors.
    """
    source = quarantine or Quarantine(folder, validation_fraction=validation_fraction)
    refs = _evenly_spaced(folder.row_groups("train"), validation_fraction, max_cells)
    num_genes, num_tokens = len(folder.vocabulary), tokenizer.num_tokens
    frequency = np.zeros(num_genes * num_tokens)
    token_total, gene_total = np.zeros(num_tokens), np.zeros(num_genes)
    portions = folder.portions()
    cells_of = np.zeros(len(portions), dtype=np.int64)
    for cells, _, portion in _training_cells(source, refs, validation_fraction):
        tokens = _tokens(cells, tokenizer)
        np.add.at(frequency, cells.indices.astype(np.int64) * num_tokens + tokens, 1.0)
        token_total += np.bincount(tokens, weights=cells.data, minlength=num_tokens)
        gene_total += np.bincount(cells.indices, weights=cells.data, minlength=num_genes)
        cells_of[portion] += cells.shape[0]
    measured = np.stack([portion.measured for portion in portions])
    num_cells = int(cells_of.sum())

    frequency = frequency.reshape(num_genes, num_tokens)
    token_mean_count = np.full(num_tokens, np.nan)
    token_number = frequency.sum(axis=0)
    np.divide(token_total, token_number, out=token_mean_count, where=token_number > 0)
    frequency[:, 0] = cells_of @ measured - frequency.sum(axis=1)
    token_mean_count[0] = 0

    def values() -> Iterator[tuple[sp.csr_matrix, Int64[np.ndarray, " cells"], int]]:
        for cells, folds, portion in _training_cells(source, refs, validation_fraction):
            logs = sp.csr_matrix((np.log1p(cells.data), cells.indices, cells.indptr), shape=cells.shape)
            yield logs, folds, portion

    width = min(rank + OVERSAMPLE, num_genes)
    sketch = uniforms(stream(Purpose.SKETCH, seed), num_genes * width).reshape(num_genes, width) - 0.5
    folds = range(1, NUM_FOLDS + 1) if cross_fit and num_cells < MANY_CELLS else ()
    return ShardStatistics(
        num_cells=num_cells,
        token_frequency=frequency,
        token_mean_count=token_mean_count,
        mean_count=gene_total / np.maximum(cells_of @ measured, 1),
        factors=_factors(values, measured, sketch, rank, NO_FOLD),
        without_fold=tuple(_factors(values, measured, sketch, rank, fold) for fold in folds),
    )


def _factors(
    values: Callable[[], Iterator[tuple[sp.csr_matrix, Int64[np.ndarray, " cells"], int]]],
    measured: Bool[np.ndarray, "portions genes"],
    sketch: Float64[np.ndarray, "genes width"],
    rank: int,
    left_out: int,
) -> CellFactors:
    """Moments and directions of all cells that are not in fold `left_out`, in a pass more than there are products.

    Where a gene was not measured, its deviation from the mean counts as 0.
    """
    num_portions, num_genes = measured.shape
    numbers, totals, squares = np.zeros(num_portions), np.zeros((num_portions, num_genes)), np.zeros(num_genes)
    for cells, folds, portion in values():
        kept = (folds != left_out).astype(np.float64)
        numbers[portion] += kept.sum()
        totals[portion] += cells.T @ kept
        squares += cells.power(2).T @ kept
    of_gene = np.maximum(numbers @ measured, 1)
    mean = totals.sum(axis=0) / of_gene
    sd = np.sqrt(np.maximum(squares / of_gene - mean**2, 0))
    own_means = totals / np.maximum(numbers, 1)[:, None]

    def centred_product(basis: Float64[np.ndarray, "genes width"]) -> Float64[np.ndarray, "genes width"]:
        product = np.zeros_like(basis)
        for number, own, is_measured in zip(numbers, own_means, measured, strict=True):
            # (L - 1 m^T)^T (L - 1 m^T) Q without L^T L Q, where L^T 1 = number * own, and m = 0 where not measured.
            centre = mean * is_measured
            product += number * (np.outer(centre, centre @ basis) - np.outer(own, centre @ basis))
            product -= number * np.outer(centre, own @ basis)
        for cells, folds, _ in values():
            product += cells.T @ ((cells @ basis) * (folds != left_out)[:, None])
        return product

    number = max(numbers.sum(), 1)
    return CellFactors(mean, sd, _principal_vectors(centred_product, sketch, rank) / np.sqrt(number))


def _principal_vectors(
    product_with: Callable, sketch: Float64[np.ndarray, "genes width"], rank: int
) -> Float64[np.ndarray, "genes rank"]:
    """Leading eigenvectors of C times the roots of its eigenvalues, from Q -> C Q alone.

    With Y = C Q the Nystroem approximation is C ~ Y (Q^T Y)^-1 Y^T, of which the factor Y (Q^T Y)^-1/2 is decomposed.
    """
    basis = np.linalg.qr(sketch)[0]
    for _ in range(NUM_PRODUCTS - 1):
        basis = np.linalg.qr(product_with(basis))[0]
    product = product_with(basis)
    core = basis.T @ product
    value, vector = np.linalg.eigh((core + core.T) / 2)
    kept = value > 1e-10 * max(value.max(), 0)  # C has no more dimensions than these
    left, singular, _ = np.linalg.svd(product @ (vector[:, kept] / np.sqrt(value[kept])), full_matrices=False)
    vectors = (left * singular)[:, :rank]
    # Signs are arbitrary; without a rule they would hang on the linear algebra library.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    vectors = vectors * np.sign(largest)
    return np.pad(vectors, ((0, 0), (0, rank - vectors.shape[1])))


def _training_cells(
    source: Quarantine, refs: Sequence[RowGroupRef], validation_fraction: float
) -> Iterator[tuple[sp.csr_matrix, Int64[np.ndarray, " cells"], int]]:
    """Counts (cells, genes) of the training cells of each row group, their folds, and their portion."""
    for ref in refs:
        if (group := source.read(ref, ())) is None:
            continue
        shape = (ref.rows, len(source.folder.vocabulary))
        cells = sp.csr_matrix((group.counts, group.gene_index, group.indptr), shape=shape)
        rows = np.sort(split_rows(ref, validation_fraction)[0])
        yield cells[rows], folds_of_rows(ref)[rows], source.folder.portion_of(ref)


def _tokens(cells: sp.csr_matrix, tokenizer: Tokenizer) -> Int64[np.ndarray, " nnz"]:
    return tokenizer.encode(cells.data, cells.indptr.astype(np.int64)).astype(np.int64)


def _evenly_spaced(refs: list[RowGroupRef], validation_fraction: float, max_cells: int) -> list[RowGroupRef]:
    """All row groups, or as many at even distances as hold about `max_cells` training cells."""
    num_cells = sum(ref.rows - num_validation_rows(ref, validation_fraction) for ref in refs)
    if num_cells <= max_cells:
        return refs
    number = max(1, round(len(refs) * max_cells / num_cells))
    return [refs[int((place + 0.5) * len(refs) / number)] for place in range(number)]
