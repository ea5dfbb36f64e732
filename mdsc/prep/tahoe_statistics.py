"""Gene statistics of data that is too large to read whole: of row groups at even distances."""

import numpy as np

from mdsc.data.genes import GeneStatistics
from mdsc.data.shards import ShardFolder


def sampled_statistics(folder: ShardFolder, num_cells: int) -> tuple[GeneStatistics, int]:
    """Statistics of about `num_cells` training cells (all, where there are fewer), and of how many it was.

    Shards are sorted by plate, so whole row groups are taken at even distances over all of them: always the same ones.
    """
    refs = folder.row_groups("train")
    total = sum(ref.rows for ref in refs)
    number = len(refs) if total <= num_cells else max(1, round(len(refs) * num_cells / total))
    totals, cells = np.zeros((3, len(folder.vocabulary))), 0
    for place in range(number):
        ref = refs[int((place + 0.5) * len(refs) / number)]
        group = folder.read(ref, columns=())
        for row, weights in enumerate((None, group.counts, np.log1p(group.counts))):
            totals[row] += np.bincount(group.gene_index, weights, minlength=len(folder.vocabulary))
        cells += ref.rows
    return GeneStatistics(*(totals / max(cells, 1))), cells
