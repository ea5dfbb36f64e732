"""The baselines that every table has, by the names of the JSON."""

from mdsc.evaluation.low_rank import LowRank
from mdsc.evaluation.marginals import DepthMarginal, GeneMarginal, Majority
from mdsc.evaluation.nearest_cells import NearestCells
from mdsc.evaluation.predictor import Baseline

BASELINES: dict[str, type[Baseline]] = {
    "majority": Majority,
    "gene_marginal": GeneMarginal,
    "gene_marginal_depth": DepthMarginal,
    "knn": NearestCells,
    "svd": LowRank,
}
