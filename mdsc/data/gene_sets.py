"""Which genes make a training example.

A *group* of cells (one lane's share of one step) shares one gene set, drawn without replacement with weights that know
the data set (how often a gene is detected at all) but not the cells at hand: so zeros are zeros, and the set tells the
model nothing about the counts that it hides. The parents' draw, each cell's own expressed genes, is the exception that
is kept for comparison; it never shows a zero.

Drawing without replacement with weights w is a race: gene g arrives at an exponential time with rate w_g, and the first
`num_genes` to arrive are the set (Efraimidis & Spirakis 2006, "Weighted random sampling with a reservoir"). With 62,000
genes most of the work would be to rank the ones that come much too late; they are left out by comparing their random
bits with a bound computed once.
"""

import numpy as np
from jaxtyping import Float64, Int64

from mdsc.data.keyed_streams import least_bits, permutation, raw_bits, uniforms_of


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
        # P(gene has arrived by the deadline) = 1 - exp(-w * deadline).
        self._least_bits = least_bits(np.exp(-weights * _deadline(weights, self.num_genes)))

    def draw(self, source: np.random.Philox) -> Int64[np.ndarray, " drawn"]:
        """One set, ids ascending."""
        if self.num_genes == np.count_nonzero(self.weights):
            return np.flatnonzero(self.weights)
        # The arrival time is -log(u) / w: before the deadline where u > exp(-w * deadline).
        bits = raw_bits(source, len(self.weights))
        arrived = np.flatnonzero(bits >= self._least_bits)
        if len(arrived) < self.num_genes:  # some eight standard deviations away; still exact
            arrived = np.flatnonzero(self.weights)
        arrival = -np.log(uniforms_of(bits[arrived])) / self.weights[arrived]
        return np.sort(arrived[np.argpartition(arrival, self.num_genes - 1)[: self.num_genes]])


def draw_expressed(num_expressed: int, num_genes: int, source: np.random.Philox) -> Int64[np.ndarray, " drawn"]:
    """The parents' draw: which of one cell's expressed genes to take, at most `num_genes`, evenly; ascending."""
    if num_expressed <= num_genes:
        return np.arange(num_expressed)
    return np.sort(permutation(source, num_expressed)[:num_genes])


def _deadline(weights: Float64[np.ndarray, " genes"], num_genes: int) -> float:
    """A time by which more than `num_genes` genes have all but surely arrived, and not many more."""
    wanted = num_genes + 8 * np.sqrt(num_genes) + 8
    if wanted >= np.count_nonzero(weights):
        return 1e300  # everyone with a weight; not inf, which would make 0 * inf of the others
    low, high = 0.0, 1.0 / weights.sum()
    while -np.expm1(-weights * high).sum() < wanted:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-weights * middle).sum() < wanted else (low, middle)
    return high
