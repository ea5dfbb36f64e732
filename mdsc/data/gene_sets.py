"""Which genes make a training example.

A *group* of cells (one lane's share of one step) shares one gene set, drawn without replacement with weights that know
the data set (how often a gene is detected at all) but not the cells at hand: so zeros are zeros, and the set tells the
model nothing about the counts that it hides. The parents' draw, each cell's own expressed genes, is the exception that
is kept for comparison; it never shows a zero.

Drawing without replacement is drawing with replacement and passing over what is there already. Where a few draws a gene
of the set are enough (1,024 of 62,000 genes), that is done, each draw by Walker's alias method (1977, "An efficient
method for generating discrete random variables with general distributions"). Where the set is most of the panel, nearly
every draw would be a repeat. The same law is then had from a race: gene g arrives at an exponential time with rate w_g,
and the first `num_genes` to arrive are the set (Efraimidis & Spirakis 2006, "Weighted random sampling with a
reservoir").
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from mdsc.data.keyed_streams import permutation, uniforms

HALF = np.uint64(32)
"""Bits of a random word that choose a slot of the alias table; the others choose between its two genes. Either way a
probability is off by G / 2^32 of itself at most."""


def gene_weights(detection_rate: Float64[np.ndarray, " genes"], uniform_share: float) -> Float64[np.ndarray, " genes"]:
    """(1 - uniform_share) * detection_rate / sum + uniform_share / G: sums to one, and no gene is left out."""
    num_genes = len(detection_rate)
    total = detection_rate.sum()
    if uniform_share == 1 or total == 0:
        return np.full(num_genes, 1 / num_genes)
    return (1 - uniform_share) * detection_rate / total + uniform_share / num_genes


class GeneSets:
    """Draws of `num_genes` genes without replacement with the given weights; all genes where there are no more.

    Genes of weight zero are never drawn; where fewer than `num_genes` have a weight, these are the set.
    """

    def __init__(self, weights: Float64[np.ndarray, " genes"], num_genes: int):
        assert num_genes >= 1
        assert (weights >= 0).all()
        assert weights.any()
        self.weights = weights
        self.num_genes = min(num_genes, int(np.count_nonzero(weights)))
        self._all = np.flatnonzero(weights) if self.num_genes == np.count_nonzero(weights) else None
        self._num_candidates = _enough_draws(weights / weights.sum(), self.num_genes)
        self._by_race = self._num_candidates >= len(weights)
        if not self._by_race:
            self._threshold, self._alias = _alias_table(weights / weights.sum())

    def draw(self, source: np.random.Philox) -> Int64[np.ndarray, " drawn"]:
        """One set, ids ascending."""
        if self._all is not None:
            return self._all
        drawn = self._first_to_arrive(source) if self._by_race else self._first_distinct(source)
        return np.sort(drawn.astype(np.int32)).astype(np.int64)  # narrow integers are sorted several times as fast

    def _first_to_arrive(self, source: np.random.Philox) -> Int64[np.ndarray, " drawn"]:
        with np.errstate(divide="ignore"):  # genes without a weight never arrive
            arrival = -np.log(uniforms(source, len(self.weights))) / self.weights
        return np.argpartition(arrival, self.num_genes - 1)[: self.num_genes]

    def _first_distinct(self, source: np.random.Philox) -> Int64[np.ndarray, " drawn"]:
        genes = np.zeros(0, dtype=np.int64)
        while True:  # once, nearly always
            genes = np.concatenate([genes, self._candidates(source)])
            first = np.empty(len(self.weights), dtype=np.int64)
            first[genes[::-1]] = np.arange(len(genes))[::-1]  # of equal places the last one written stays
            distinct = genes[first[genes] == np.arange(len(genes))]
            if len(distinct) >= self.num_genes:
                return distinct[: self.num_genes]

    def _candidates(self, source: np.random.Philox) -> Int64[np.ndarray, " candidates"]:
        """Genes drawn with replacement."""
        words = source.random_raw(self._num_candidates)
        slot = (((words >> HALF) * np.uint64(len(self.weights))) >> HALF).astype(np.int64)
        own = (words & np.uint64(0xFFFFFFFF)) < self._threshold[slot]
        return np.where(own, slot, self._alias[slot])


def draw_expressed(num_expressed: int, num_genes: int, source: np.random.Philox) -> Int64[np.ndarray, " drawn"]:
    """The parents' draw: which of one cell's expressed genes to take, at most `num_genes`, evenly; ascending."""
    if num_expressed <= num_genes:
        return np.arange(num_expressed)
    return np.sort(permutation(source, num_expressed)[:num_genes])


def _enough_draws(probability: Float64[np.ndarray, " genes"], num_genes: int) -> int:
    """With so many draws with replacement at least `num_genes` distinct genes have all but surely come."""
    wanted = num_genes + 8 * np.sqrt(num_genes) + 8
    if wanted >= np.count_nonzero(probability):
        return len(probability)
    low, high = 0.0, float(num_genes)
    while -np.expm1(-probability * high).sum() < wanted:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-probability * middle).sum() < wanted else (low, middle)
    return int(np.ceil(high))


def _alias_table(
    probability: Float64[np.ndarray, " genes"],
) -> tuple[UInt64[np.ndarray, " genes"], Int64[np.ndarray, " genes"]]:
    """Of G equally likely slots: below which of 2^32 numbers a slot stands for its own gene, and for which one else."""
    share = probability * len(probability)
    alias = np.arange(len(probability))
    small, large = (np.flatnonzero(chosen).tolist() for chosen in (share < 1, share >= 1))
    own = share.tolist()
    while small and large:
        one, other = small.pop(), large[-1]
        alias[one] = other
        own[other] -= 1 - own[one]
        if own[other] < 1:
            small.append(large.pop())
    for one in small + large:  # exactly 1, but for rounding
        own[one] = 1.0
    return np.round(np.array(own) * 2.0**32).astype(np.uint64), alias
