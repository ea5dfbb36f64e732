"""The typical count of each token, fitted on training cells for the ordinal losses and for decoding."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer

from mdsc.data.tokenizers import Tokenizer


def fit_values(
    tokenizer: Tokenizer,
    row_groups: Iterable[tuple[Integer[np.ndarray, " nnz"], Integer[np.ndarray, " cells_plus_one"]]],
) -> Tokenizer:
    """The tokenizer with the mean count of each token over `row_groups` of (counts, indptr) as its values."""
    total = np.zeros(tokenizer.num_tokens)
    number = np.zeros(tokenizer.num_tokens)
    for counts, indptr in row_groups:
        tokens = tokenizer.encode(counts, indptr)
        total += np.bincount(tokens, weights=counts, minlength=tokenizer.num_tokens)
        number += np.bincount(tokens, minlength=tokenizer.num_tokens)
    mean = np.full(tokenizer.num_tokens, np.nan)
    np.divide(total, number, out=mean, where=number > 0)
    return tokenizer.with_values(mean)
