"""A small folder of shards with cells whose counts, programmes and conditions are known."""

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from mdsc.data.genes import GeneVocabulary
from mdsc.data.shard_writer import ShardWriter
from mdsc.data.shards import ShardFolder


def simulated_counts(num_cells: int, num_genes: int, *, seed: int = 0, mean: float = 0.6) -> sp.csr_matrix:
    """Gamma-Poisson counts with two programmes of genes, genes of very different levels and cells of unlike depth."""
    rng = np.random.default_rng(seed)
    level = mean * rng.pareto(1.5, num_genes) / 2
    programme = np.exp(rng.normal(size=(2, num_genes)))[rng.integers(0, 2, num_cells)]
    depth = rng.gamma(5, 1 / 5, size=(num_cells, 1))
    return sp.csr_matrix(rng.poisson(depth * programme * level).astype(np.int32))


def write_shards(
    folder: Path, counts: sp.csr_matrix, *, cells_per_shard: int = 28_000, portion: int = 1000
) -> ShardFolder:
    """All cells as split "train"; cell i has the drug "drug i % 3", and "" for i % 10 == 9."""
    vocabulary = GeneVocabulary.of([f"G{number}" for number in range(counts.shape[1])])
    names = np.arange(counts.shape[0])
    with ShardWriter(folder, vocabulary, ["drug"], cells_per_shard=cells_per_shard) as writer:
        for first in range(0, len(names), portion):
            part = names[first : first + portion]
            drugs = ["" if name % 10 == 9 else f"drug {name % 3}" for name in part]
            writer.write("train", counts[part], {"drug": drugs}, [f"cell {name}" for name in part])
    return ShardFolder.open(folder)
