"""What the harness asks of a model and of a baseline, from visible counts alone: log-probabilities of tokens; of those
that have none, one count for each hidden position."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Float32, Int16, Int32

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.evidence import Evidence

Counts = Int32[np.ndarray, "cells genes"]
Visible = Bool[np.ndarray, "cells genes"]
LogProbs = Float32[np.ndarray, "cells genes V"]
ExpectedCounts = Float32[np.ndarray, "cells genes"]


@runtime_checkable
class Predictor(Protocol):
    """Says what the hidden counts of a cell may be, having seen the visible ones."""

    def log_probs(self, cells: Evidence) -> LogProbs:
        """log p(token) of every position, (cells, genes, V), float32; each position's probabilities sum to 1.

        What is said of visible positions is never scored.
        """
        ...


@runtime_checkable
class PointPredictor(Protocol):
    """Says what to expect of each hidden count, and nothing of how likely others are."""

    def expected_counts(self, cells: Evidence) -> ExpectedCounts:
        """(cells, genes), 0 or more. What is said of visible positions is never scored."""
        ...


@dataclass(frozen=True)
class AskedCells:
    """All held-out cells with the counts hidden that will be asked for. A method that denoises a matrix has to have
    them beforehand; `Evidence.cell_index` of what it is asked later is the row here."""

    counts: sp.csr_matrix
    """(cells, genes), nothing where a count is hidden."""
    visible: Visible


FitToAsked = Callable[["TrainingCells", Visible, AskedCells], Predictor | PointPredictor]
"""(train, hidden, asked) -> predictor, anew for each mask ratio and each draw of what is hidden. hidden: positions of
the training cells, as for `Baseline.fit`."""


class Baseline(ABC):
    """A predictor that is fitted on training cells within seconds, anew for each mask ratio."""

    @classmethod
    @abstractmethod
    def fit(cls, train: "TrainingCells", hidden: Visible) -> "Baseline":
        """hidden: positions of the *training* cells, drawn at the mask ratio that will be scored, to tune by."""

    @abstractmethod
    def predict(self, counts: Counts, visible: Visible) -> LogProbs:
        """`log_probs`, from arrays. counts: 0 where not visible."""

    def log_probs(self, cells: Evidence) -> LogProbs:
        return self.predict(cells.counts.numpy(), cells.visible.numpy())


@dataclass(frozen=True)
class TrainingCells:
    """Counts (cells, genes) of whole training cells, dense, and their tokens."""

    counts: Int32[np.ndarray, "cells genes"]
    tokens: Int16[np.ndarray, "cells genes"]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, counts: sp.csr_matrix, tokenizer: Tokenizer) -> "TrainingCells":
        return cls(counts.toarray().astype(np.int32), whole_cell_tokens(counts, tokenizer), tokenizer)

    @property
    def num_tokens(self) -> int:
        return self.tokenizer.num_tokens

    @cached_property
    def mean_count(self) -> Float[np.ndarray, " genes"]:
        return self.counts.mean(axis=0)

    @cached_property
    def token_counts(self) -> Float[np.ndarray, "genes V"]:
        """In how many cells each gene has each token."""
        num_genes = self.tokens.shape[1]
        index = self.tokens.astype(np.int64) + np.arange(num_genes) * self.num_tokens
        flat = np.bincount(index.ravel(), minlength=num_genes * self.num_tokens)
        return flat.reshape(num_genes, self.num_tokens).astype(np.float64)


def whole_cell_tokens(counts: sp.csr_matrix, tokenizer: Tokenizer) -> Int16[np.ndarray, "cells genes"]:
    """Tokens of whole cells, dense: the targets."""
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()  # stored zeros are zeros: only true nonzeros are ranked
    tokens = tokenizer.encode(counts.data.astype(np.int32), counts.indptr.astype(np.int64))
    return sp.csr_matrix((tokens, counts.indices, counts.indptr), shape=counts.shape).toarray()
