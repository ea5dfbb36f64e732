"""What a trainer wants to know of the training cells before it starts: token frequencies and gene vectors.

The gene vectors are the right singular vectors of A, the cells' values as the model reads them (log1p of the typical
count of each token) with each gene's mean taken off. Depth is left in: it is a factor of the cell like any other, and
the model sees raw counts. A is never built. The randomised Nystroem method (Halko, Martinsson & Tropp 2011, "Finding
structure with randomness", algorithm 5.5, on the covariance) needs products of C = A^T A with a thin matrix Q only, and
these are sums over row groups of sparse matrices:

    C Q = L^T (L Q) - cells * mean (mean^T Q)        L: uncentred, mean: of each gene

One pass counts, and each product takes another: all but the last sharpen the range (subspace iteration), the last one
gives the factorisation. Memory is O(genes * rank) and one row group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from mdsc.data.keyed_streams import Purpose, stream, uniforms
from mdsc.data.shards import RowGroupRef, ShardFolder
from mdsc.data.tokenizers import Tokenizer
from mdsc.data.validation_split import num_validation_rows, split_rows

OVERSAMPLE = 16
NUM_PRODUCTS = 3


@dataclass(frozen=True, eq=False)
class ShardStatistics:
    """Of `num_cells` training cells; G genes, V tokens."""

    num_cells: int
    token_frequency: Float64[np.ndarray, "genes tokens"]
    """Cells that have this token at this gene; rows sum to num_cells, token 0 being the cells without a count."""
    token_mean_count: Float64[np.ndarray, " tokens"]
    """Mean count behind each token, NaN where no cell has it: for `Tokenizer.with_values`."""
    gene_mean: Float64[np.ndarray, " genes"]
    """Mean value of each gene; a value is log1p of the typical count of a token."""
    gene_sd: Float64[np.ndarray, " genes"]
    """Standard deviation of the same."""
    gene_vectors: Float64[np.ndarray, "genes rank"]
    """Right singular vectors of the centred values, each times its singular value / sqrt(num_cells): the columns'
    squared lengths are the variances along them, descending. Zero columns where the cells have fewer dimensions."""


def shard_statistics(
    folder: ShardFolder,
    tokenizer: Tokenizer,
    *,
    rank: int,
    validation_fraction: float,
    max_cells: int = 50_000,
    seed: int = 0,
) -> ShardStatistics:
    """Statistics of split "train" without its validation cells.

    Where there are more than `max_cells`, whole row groups are taken at even distances (shards are often sorted by
    plate) until there are about as many. `seed` is that of the random sketch.
    """
    refs = _evenly_spaced(folder.row_groups("train"), validation_fraction, max_cells)
    num_genes, num_tokens = len(folder.vocabulary), tokenizer.num_tokens
    frequency = np.zeros(num_genes * num_tokens)
    token_total = np.zeros(num_tokens)
    num_cells = 0
    for cells in _training_cells(folder, refs, validation_fraction):
        tokens = _tokens(cells, tokenizer)
        np.add.at(frequency, cells.indices.astype(np.int64) * num_tokens + tokens, 1.0)
        token_total += np.bincount(tokens, weights=cells.data, minlength=num_tokens)
        num_cells += cells.shape[0]

    frequency = frequency.reshape(num_genes, num_tokens)
    token_mean_count = np.full(num_tokens, np.nan)
    token_number = frequency.sum(axis=0)
    np.divide(token_total, token_number, out=token_mean_count, where=token_number > 0)
    frequency[:, 0] = num_cells - frequency.sum(axis=1)
    token_mean_count[0] = 0
    token_value = np.log1p(tokenizer.with_values(token_mean_count).values)
    mean = frequency @ token_value / num_cells

    def centred_product(basis: Float64[np.ndarray, "genes width"]) -> Float64[np.ndarray, "genes width"]:
        product = -num_cells * np.outer(mean, mean @ basis)
        for cells in _training_cells(folder, refs, validation_fraction):
            data = token_value[_tokens(cells, tokenizer)]
            values = sp.csr_matrix((data, cells.indices, cells.indptr), shape=cells.shape)
            product += values.T @ (values @ basis)
        return product

    width = min(rank + OVERSAMPLE, num_genes)
    sketch = uniforms(stream(Purpose.SKETCH, seed), num_genes * width).reshape(num_genes, width) - 0.5
    return ShardStatistics(
        num_cells=num_cells,
        token_frequency=frequency,
        token_mean_count=token_mean_count,
        gene_mean=mean,
        gene_sd=np.sqrt(np.maximum(frequency @ token_value**2 / num_cells - mean**2, 0)),
        gene_vectors=_principal_vectors(centred_product, sketch, rank) / np.sqrt(num_cells),
    )


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
    folder: ShardFolder, refs: Sequence[RowGroupRef], validation_fraction: float
) -> Iterator[sp.csr_matrix]:
    """Counts (cells, genes) of the training cells of each row group."""
    for ref in refs:
        group = folder.read(ref, columns=())
        shape = (ref.rows, len(folder.vocabulary))
        cells = sp.csr_matrix((group.counts, group.gene_index, group.indptr), shape=shape)
        yield cells[np.sort(split_rows(ref, validation_fraction)[0])]


def _tokens(cells: sp.csr_matrix, tokenizer: Tokenizer) -> Int64[np.ndarray, " nnz"]:
    return tokenizer.encode(cells.data, cells.indptr.astype(np.int64)).astype(np.int64)


def _evenly_spaced(refs: list[RowGroupRef], validation_fraction: float, max_cells: int) -> list[RowGroupRef]:
    """All row groups, or as many at even distances as hold about `max_cells` training cells."""
    num_cells = sum(ref.rows - num_validation_rows(ref, validation_fraction) for ref in refs)
    if num_cells <= max_cells:
        return refs
    number = max(1, round(len(refs) * max_cells / num_cells))
    return [refs[int((place + 0.5) * len(refs) / number)] for place in range(number)]
