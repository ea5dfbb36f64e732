"""What the two list columns of a row group must hold, checked and turned into counts and places in the vocabulary.

An entry with an id below 3 (Tahoe's CLS, which opens each cell) is dropped. What is left must be positive integers for
known genes, each gene once in a cell.
"""

import numpy as np
from jaxtyping import Float, Int32, Int64, Integer

from mdsc.data.compiled import compiled
from mdsc.data.genes import FIRST_TOKEN_ID

BAD_COUNT = "not all expressions are positive integers"
BAD_GENE = "a gene id is not in genes.parquet"
REPEATED = "a cell has the same gene twice"
INT32_END = 2.0**31


def checked_entries(
    genes: Int64[np.ndarray, " entries"],
    values: Float[np.ndarray, " entries"],
    indptr: Int64[np.ndarray, " rows_plus_one"],
    index_of_token: Int32[np.ndarray, " ids"],
) -> (
    tuple[Int32[np.ndarray, " nnz"], Int32[np.ndarray, " nnz"], Int64[np.ndarray, " rows_plus_one"]]
    | str
):  # fmt: skip
    """(counts, gene_index, indptr) of the entries that are genes; or what is wrong with them."""
    loop = compiled(_check_loop)
    if loop is None:
        genes, values, indptr = _drop_special(genes, values, indptr)
        counts, gene_index = _as_counts(values), _look_up(genes, index_of_token)
        if counts is None or gene_index is None:
            return BAD_COUNT if counts is None else BAD_GENE
        ascends = _ascends(gene_index, indptr)
    else:
        counts, gene_index = np.empty(len(genes), dtype=np.int32), np.empty(len(genes), dtype=np.int32)
        kept = np.empty_like(indptr)
        good_counts, good_genes, ascends = loop(genes, values, indptr, index_of_token, counts, gene_index, kept)
        if not (good_counts and good_genes):
            return BAD_GENE if good_counts else BAD_COUNT
        counts, gene_index, indptr = counts[: kept[-1]], gene_index[: kept[-1]], kept
    if not ascends and _repeats(gene_index, indptr):
        return REPEATED
    return counts, gene_index, indptr


def _check_loop(genes, values, indptr, index_of_token, counts, gene_index, kept):
    """All checks in one pass. Fills the last three; gives whether counts are good, genes are known, and ascend."""
    good_counts = good_genes = ascends = True
    done = 0
    kept[0] = 0
    for row in range(len(indptr) - 1):
        last = -1
        for entry in range(indptr[row], indptr[row + 1]):
            gene = genes[entry]
            if gene < FIRST_TOKEN_ID:
                continue
            value = values[entry]
            # A comparison with NaN is false.
            if value >= 1 and value < INT32_END and value == np.int32(value):
                counts[done] = np.int32(value)
            else:
                good_counts = False
            place = index_of_token[gene] if gene < len(index_of_token) else np.int32(-1)
            good_genes = good_genes and place >= 0
            ascends = ascends and place > last
            last = place
            gene_index[done] = place
            done += 1
        kept[row + 1] = done
    return good_counts, good_genes, ascends


def _drop_special(genes: np.ndarray, values: np.ndarray, indptr: np.ndarray) -> tuple[np.ndarray, ...]:
    keep = genes >= FIRST_TOKEN_ID
    num_special = len(keep) - np.count_nonzero(keep)
    if not num_special:
        return genes, values, indptr
    num_rows = len(indptr) - 1
    if num_special == num_rows and (np.diff(indptr) > 0).all() and not keep[indptr[:-1]].any():
        kept = indptr - np.arange(num_rows + 1)  # as in Tahoe: each cell starts with its CLS
    else:
        kept = np.concatenate([[0], np.cumsum(keep)])[indptr]
    return genes[keep], values[keep], kept


def _as_counts(values: Float[np.ndarray, " nnz"]) -> Int32[np.ndarray, " nnz"] | None:
    with np.errstate(invalid="ignore"):  # NaN and values beyond int32 differ from their cast, and are told so
        counts = values.astype(np.int32)
    good = counts.min(initial=1) >= 1 and bool((counts == values).all()) and values.max(initial=1) < INT32_END
    return counts if good else None


def _look_up(genes: Int64[np.ndarray, " nnz"], index_of_token: np.ndarray) -> Int32[np.ndarray, " nnz"] | None:
    if genes.max(initial=0) >= len(index_of_token):
        return None
    places = index_of_token.take(genes, mode="clip")  # in range, as was just seen: "clip" saves the check of each
    return places if places.min(initial=0) >= 0 else None


def _ascends(gene_index: Integer[np.ndarray, " nnz"], indptr: Int64[np.ndarray, " rows_plus_one"]) -> bool:
    """Whether the genes of every cell ascend, as in all files of Tahoe and of mdsc."""
    ascends = gene_index[1:] > gene_index[:-1]
    starts = indptr[1:-1]
    ascends[starts[(starts > 0) & (starts < len(gene_index))] - 1] = True
    return bool(ascends.all())


def _repeats(gene_index: Integer[np.ndarray, " nnz"], indptr: Int64[np.ndarray, " rows_plus_one"]) -> bool:
    cell = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((gene_index, cell))
    return bool(((np.diff(gene_index[order]) == 0) & (np.diff(cell[order]) == 0)).any())
