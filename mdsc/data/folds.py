"""Parts of the training cells, so that what is fitted on some can be tried on the others (cross-fitting).

What a model reads of a gene may come from a fit to the training cells (`shard_statistics`). Such a fit has seen the
cell's own noise: it says more of a training cell than of any other, and a network that learns from it learns to trust
it too much. So each training cell is told what a fit to the *other* folds says, as in stacking (Wolpert 1992,
"Stacked generalization", Neural Networks 5) and cross-fitting (Chernozhukov et al. 2018, arXiv 1608.00060).
"""

import numpy as np
from jaxtyping import Int64

from mdsc.data.keyed_streams import Purpose, stream
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.validation_split import address_hash

NUM_FOLDS = 5
NO_FOLD = 0
"""Of every cell that no fit has seen: validation cells, held-out cells, a user's own."""


def folds_of_rows(ref: RowGroupRef) -> Int64[np.ndarray, " rows"]:
    """Fold 1 .. NUM_FOLDS of each row of a row group: a pure function of its address (file, group, row)."""
    key, _ = address_hash(ref)
    return 1 + (stream(Purpose.FOLD, key).random_raw(ref.rows) % np.uint64(NUM_FOLDS)).astype(np.int64)
