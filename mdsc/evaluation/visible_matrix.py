"""What a method gets that denoises a matrix of log-normalised counts, and the way back to counts.

Rows are the training cells, their counts hidden at the mask ratio that is scored, and below them the cells that will be
asked about. All are hidden alike: a method that knows no missing values would else mostly see who is hidden.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32

from mdsc.diffusion.evidence import Evidence
from mdsc.evaluation.predictor import AskedCells, ExpectedCounts, TrainingCells, Visible

PRIOR_COUNTS = 5.0
"""Weight, in true counts, of the ratio of all genes in a gene's own ratio of true to denoised counts."""
PER = 1e4


@dataclass(frozen=True)
class FilledMatrix:
    """A predictor that has answered already: one count for each position of the asked cells."""

    expected: Float32[np.ndarray, "asked genes"]

    def expected_counts(self, cells: Evidence) -> ExpectedCounts:
        return self.expected[cells.cell_index.numpy()]


@dataclass(frozen=True, eq=False)
class VisibleMatrix:
    train: TrainingCells
    hidden: Visible
    """Of the training cells."""
    asked: AskedCells

    @cached_property
    def counts(self) -> sp.csr_matrix:
        """(training cells + asked cells, genes), nothing where a count is hidden."""
        seen = sp.csr_matrix(np.where(self.hidden, 0, self.train.counts))
        return sp.vstack([seen, self.asked.counts], format="csr")

    @cached_property
    def depth(self) -> Float[np.ndarray, " cells"]:
        """Of whole cells, as far as it is known: visible depth over the share of visible genes."""
        share = np.concatenate([(~self.hidden).mean(axis=1), self.asked.visible.mean(axis=1)])
        return np.maximum(np.asarray(self.counts.sum(axis=1)).ravel(), 1) / np.maximum(share, 1e-9)

    @cached_property
    def log_normalised(self) -> sp.csr_matrix:
        """log1p(counts per 10,000 of the depth)."""
        values = (sp.diags(PER / self.depth) @ self.counts).tocsr().astype(np.float32)
        values.data = np.log1p(values.data)
        return values

    def to_counts(self, denoised: Float[np.ndarray, "rows genes"], rows: slice) -> Float32[np.ndarray, "rows genes"]:
        """At each cell's depth; not yet made larger for the share that was hidden."""
        rates = np.expm1(np.maximum(denoised, 0)).astype(np.float32)
        return rates * (self.depth[rows, None] / PER).astype(np.float32)

    def gene_factors(self, denoised: Float[np.ndarray, "rows genes"], rows: slice) -> Float32[np.ndarray, " genes"]:
        """True over denoised counts of each gene at the hidden positions of these training cells.

        Hidden counts took part as zeros and logarithms were averaged: both make the values too small, more or less so
        for each gene.
        """
        hidden = self.hidden[rows]
        said = (self.to_counts(denoised, rows) * hidden).sum(axis=0, dtype=np.float64)
        true = (self.train.counts[rows] * hidden).sum(axis=0, dtype=np.float64)
        overall = true.sum() / max(said.sum(), 1e-9)
        return ((true + PRIOR_COUNTS) / (said + PRIOR_COUNTS / max(overall, 1e-9))).astype(np.float32)

    def filled(self, denoised: Float[np.ndarray, "cells genes"]) -> FilledMatrix:
        """The answer that a whole denoised matrix of log-normalised values holds."""
        num_train = len(self.train.counts)
        factors = self.gene_factors(denoised[:num_train], slice(0, num_train))
        asked = slice(num_train, len(denoised))
        return FilledMatrix(self.to_counts(denoised[asked], asked) * factors)
