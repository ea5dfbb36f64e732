"""Log expression out of what a file holds: raw counts are converted, log expression is taken, all else is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from mdsc.data.condition_levels import near_names
from mdsc.data.log_expression import log_normalised
from mdsc.data.row_group_checks import first_line
from mdsc.errors import UserError

if TYPE_CHECKING:
    from anndata import AnnData

LARGEST = 9.3
"""No log1p of counts per 10,000 is above log1p(10,000) = 9.21."""
MOST_TIMES = 3.0
"""The mean of a prediction is that of the real cells, up to this factor. Its tails may lie beyond what cells can have,
below 0 too, as those of linear models do; what was scaled or centred has quite another mean."""
CHUNK = 4_000_000
CHUNK_ROWS = 4000

Matrix = sp.csr_matrix | np.ndarray
"""(cells, genes)"""


def read_cells(path: Path) -> "AnnData":
    """A whole h5ad file; UserError where there is none, or it is damaged."""
    import anndata

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        return anndata.read_h5ad(path)
    except MemoryError:
        raise
    except Exception as error:  # anndata's readers have kinds of their own
        raise UserError(f"{path} is no h5ad file, or damaged ({first_line(error)})") from error


def matrix_of(adata: "AnnData", layer: str | None, name: str, flag: str = "--layer") -> Matrix:
    """X, or a layer: CSR or dense, as it is stored."""
    if layer is not None and layer not in adata.layers:
        raise UserError(f"{flag}: {name} has no layer {layer!r}; {near_names(layer, adata.layers, 'it has')}.")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise UserError(f"{name} has no X; give {flag} one of {', '.join(adata.layers) or 'its layers'}.")
    if sp.issparse(matrix):
        return sp.csr_matrix(matrix)
    return np.asarray(matrix)


def log_expression(matrix: Matrix, name: str, real_mean: float | None = None) -> tuple[Matrix, bool]:
    """float32 log1p of counts per 10,000, and whether it was made of raw counts here.

    real_mean: of a prediction, the mean log expression of real cells.

    Values that are all integers are counts. A UserError where values are neither counts nor can be log expression.
    """
    parts = [_facts(values) for values in _values(matrix)] or [(True, 0.0, 0.0, True)]
    finite, least, largest, integers = zip(*parts, strict=True)
    if not all(finite):
        raise UserError(f"{name} holds NaN or infinite values: leave those cells or genes out, or set them to 0.")
    if min(least) >= 0 and all(integers):
        return _logs_of(matrix), True
    if real_mean is None:
        is_plausible = min(least) >= 0 and max(largest) <= LARGEST
    else:
        is_plausible = real_mean / MOST_TIMES <= matrix.mean() <= real_mean * MOST_TIMES
    if not is_plausible:
        raise UserError(
            f"{name} holds values from {min(least):.4g} to {max(largest):.4g}: neither raw counts nor log1p of counts "
            "per 10,000 (0 to 9.2).\nGive raw counts, or log expression that is neither scaled nor centred."
        )
    return matrix.astype(np.float32), False


def _logs_of(counts: Matrix) -> sp.csr_matrix:
    """Some rows at a time, into what holds the result: logarithms are taken in doubles, of which there is no room for
    all."""
    size = counts.nnz if sp.issparse(counts) else np.count_nonzero(counts)
    data, indices = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.int32)
    lengths, end = [np.zeros(1, dtype=np.int64)], 0
    for start in range(0, counts.shape[0], CHUNK_ROWS):
        logs = log_normalised(sp.csr_matrix(counts[start : start + CHUNK_ROWS]))
        data[end : end + logs.nnz], indices[end : end + logs.nnz] = logs.data, logs.indices
        lengths.append(np.diff(logs.indptr))
        end += logs.nnz
    return sp.csr_matrix((data[:end], indices[:end], np.cumsum(np.concatenate(lengths))), counts.shape)


def _values(matrix: Matrix) -> Iterator[np.ndarray]:
    """All stored values, a chunk at a time."""
    flat = matrix.data if sp.issparse(matrix) else matrix.reshape(-1)
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK]


def _facts(values: np.ndarray) -> tuple[bool, float, float, bool]:
    """Finite; least; largest; all integers."""
    if not np.isfinite(values).all():
        return False, 0.0, 0.0, False
    return True, float(values.min()), float(values.max()), bool((values == np.rint(values)).all())
