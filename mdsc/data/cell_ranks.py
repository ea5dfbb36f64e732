"""Where each count stands among the nonzero counts of its cell: distinct values at or below it, and counts below it.

Both are given twice: for the stored nonzeros of whole cells (numpy, CSR) and for a dense panel (torch). The two agree
exactly, so that targets made by the loader and the states made by samplers are the same tokens. On a CPU nothing is
sorted: a table of cells x counts is filled and summed along the counts, which is an order of magnitude faster. But the
largest count must be known for it, for which the host would have to wait for a GPU: there, counts are sorted.
"""

import numpy as np
import torch
from jaxtyping import Int, Int16, Integer
from torch import Tensor

from mdsc.data.compiled import compiled

# A table of largest count + 1 entries is affordable up to here; beyond it (never seen in single cells) we sort.
LARGEST_IN_TABLE = 1 << 22


def csr_dense_ranks(
    counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
) -> Integer[np.ndarray, " nnz"]:
    """Number of distinct counts of the cell that are at or below each count: 1 for its lowest, without gaps."""
    place, shape = _places(counts, indptr)
    present = np.zeros(shape, dtype=bool)
    present.ravel()[place] = True
    return np.cumsum(present, axis=1, dtype=np.int32).ravel()[place]


def csr_dense_rank_tokens(
    counts: Integer[np.ndarray, " nnz"],
    indptr: Integer[np.ndarray, " cells_plus_one"],
    token_of_rank: Int16[np.ndarray, " ranks"],
) -> Int16[np.ndarray, " nnz"]:
    """`token_of_rank` at the dense rank of each count; its last token stands for all higher ranks, too."""
    top, largest = len(token_of_rank) - 1, int(counts.max(initial=0))
    loop = compiled(_rank_tokens_loop)
    if loop is None or largest > LARGEST_IN_TABLE:
        return token_of_rank[np.minimum(csr_dense_ranks(counts, indptr), top)]
    assert counts.min(initial=1) > 0, "only nonzero counts are stored"
    tokens = np.empty(len(counts), dtype=np.int16)
    loop(counts, indptr, token_of_rank, np.full(largest + 1, -1, dtype=np.int16), tokens)
    return tokens


def csr_counts_below(
    counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
) -> Integer[np.ndarray, " nnz"]:
    """Number of nonzero counts of the cell that are strictly below each count; ties get the same number."""
    place, shape = _places(counts, indptr)
    histogram = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    return (np.cumsum(histogram, axis=1) - histogram).ravel()[place]


def dense_ranks(counts: Int[Tensor, "batch genes"]) -> Int[Tensor, "batch genes"]:
    """As `csr_dense_ranks` over the nonzero counts of each row; 0 where the count is 0."""
    if _sorts(counts):
        ascending, place = _sorted_places(counts)
        is_new = torch.diff(ascending, dim=1, prepend=torch.zeros_like(ascending[:, :1])) > 0
        return is_new.cumsum(dim=1).gather(1, place)
    value, num_values = _number_values(counts)
    present = torch.zeros(len(counts), num_values, dtype=torch.bool, device=counts.device)
    present.scatter_(1, value, True)
    present[:, 0] = False
    return present.cumsum(dim=1).gather(1, value)


def counts_below(counts: Int[Tensor, "batch genes"]) -> Int[Tensor, "batch genes"]:
    """As `csr_counts_below` over the nonzero counts of each row; 0 where the count is 0."""
    if _sorts(counts):
        _, place = _sorted_places(counts)
        return (place - (counts == 0).sum(dim=1, keepdim=True)).clamp(min=0)
    value, num_values = _number_values(counts)
    histogram = torch.zeros(len(counts), num_values, dtype=torch.long, device=counts.device)
    histogram.scatter_add_(1, value, torch.ones_like(value))
    histogram[:, 0] = 0
    return (histogram.cumsum(dim=1) - histogram).gather(1, value)


def _rank_tokens_loop(counts, indptr, token_of_rank, token_of_count, tokens):
    """Fill `tokens`; `token_of_count`, a table of -1 up to the largest count, is used for one cell after the other."""
    top = len(token_of_rank) - 1
    for cell in range(len(indptr) - 1):
        count, token = counts[indptr[cell] : indptr[cell + 1]], tokens[indptr[cell] : indptr[cell + 1]]
        largest = 0
        for entry in range(len(count)):
            largest = max(largest, count[entry])
        for entry in range(len(count)):
            token_of_count[np.uint32(count[entry])] = 0  # unsigned: not looked at for being negative
        rank = 0
        for value in range(largest + 1):
            if token_of_count[value] == 0:
                rank += 1
                token_of_count[value] = token_of_rank[min(rank, top)]
        for entry in range(len(count)):
            token[entry] = token_of_count[np.uint32(count[entry])]
        token_of_count[: largest + 1] = -1


def _places(
    counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
) -> tuple[Integer[np.ndarray, " nnz"], tuple[int, int]]:
    """Flat place of every stored count in a table of cells x values, and the table's shape."""
    num_cells, nnz = len(indptr) - 1, len(counts)
    if nnz == 0:
        return np.zeros(0, dtype=np.int64), (num_cells, 0)
    assert counts.min() > 0, "only nonzero counts are stored"
    largest = int(counts.max())
    if num_cells * (largest + 1) <= 4 * nnz:
        value, num_values = counts, largest + 1
    elif largest <= LARGEST_IN_TABLE:
        # A few large counts would make the table sparse, so that only those that occur are numbered.
        occurs = np.zeros(largest + 1, dtype=bool)
        occurs[counts] = True
        number = np.cumsum(occurs) - 1
        value, num_values = number[counts], int(number[-1]) + 1
    else:
        distinct, value = np.unique(counts, return_inverse=True)
        num_values = len(distinct)
    row_start = np.arange(num_cells, dtype=np.int64) * num_values
    return np.repeat(row_start, np.diff(indptr)) + value, (num_cells, num_values)


def _sorts(counts: Tensor) -> bool:
    return counts.is_cuda


def _sorted_places(counts: Int[Tensor, "batch genes"]) -> tuple[Int[Tensor, "batch genes"], Int[Tensor, "batch genes"]]:
    """The counts of each row in ascending order, and the first place of each count among them."""
    counts = counts.contiguous()
    ascending = counts.sort(dim=1).values
    return ascending, torch.searchsorted(ascending, counts)


def _number_values(counts: Int[Tensor, "batch genes"]) -> tuple[Int[Tensor, "batch genes"], int]:
    """Order-preserving numbers of the counts, 0 for count 0, and how many numbers there are."""
    counts = counts.long()
    largest = int(counts.max()) if counts.numel() else 0
    if largest < 4 * counts.shape[1]:
        return counts, largest + 1
    distinct = torch.unique(torch.cat([counts.new_zeros(1), counts.flatten()]))
    return torch.searchsorted(distinct, counts.contiguous()), len(distinct)
