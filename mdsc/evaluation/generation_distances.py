"""How far apart two sets of cells are: MMD, 2-Wasserstein, how well a classifier tells them apart, nearest cells."""

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial.distance import cdist

from mdsc.errors import UserError

WIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
NUM_FOLDS = 5

Points = Float[np.ndarray, "cells k"]


def squared_median(reference: Points) -> float:
    """Median squared distance between two different cells: the scale of the kernels (median heuristic)."""
    squared = cdist(reference, reference, "sqeuclidean")
    return float(np.median(squared[np.triu_indices(len(reference), 1)])) or 1.0


def mmd2(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"], scale: float) -> float:
    """Squared maximum mean discrepancy, the unbiased estimate of Gretton et al. 2012, eq. 3: its mean is 0 for equal
    laws, so that it may be below 0. Mean over kernels exp(-d^2 / (factor scale)), factors WIDTH_FACTORS."""
    within_x, within_y, between = (cdist(a, b, "sqeuclidean") for a, b in ((x, x), (y, y), (x, y)))
    n, m, values = len(x), len(y), []
    for width in scale * np.array(WIDTH_FACTORS):
        of_x = (np.exp(-within_x / width).sum() - n) / (n * (n - 1))
        of_y = (np.exp(-within_y / width).sum() - m) / (m * (m - 1))
        values.append(of_x + of_y - 2 * np.exp(-between / width).mean())
    return float(np.mean(values))


def has_pot() -> bool:
    try:
        import ot  # noqa: F401
    except ImportError:
        return False
    return True


def wasserstein2(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"]) -> float:
    """2-Wasserstein distance of the two samples, exact. Above 0 for equal laws, and less so the more cells there are:
    to be read beside what two halves of one sample give."""
    try:
        import ot
    except ImportError as error:
        raise UserError('2-Wasserstein needs the package POT: pip install "mdsc[eval]"') from error
    weights = [np.full(len(points), 1 / len(points)) for points in (x, y)]
    return float(np.sqrt(max(ot.emd2(*weights, cdist(x, y, "sqeuclidean"), numItermax=1_000_000), 0.0)))


def classifier_auc(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"], kind: str, seed: int = 0) -> float:
    """Area under the ROC curve of a classifier that tells x from y, on cells that it was not trained on.

    Mean over NUM_FOLDS folds: 0.5 if they cannot be told apart, 1 if always. kind: "logistic" or "boosting".
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    else:
        model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed)
    label = np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(model, np.concatenate([x, y]), label, cv=folds, scoring="roc_auc").mean())


def nearest_distance(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"]) -> Float64[np.ndarray, " n"]:
    """Euclidean distance of each x to the nearest y."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(y).kneighbors(x)[0][:, 0].astype(np.float64)


def chance_of_less(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """P(one of a < one of b) + P(equal) / 2, over all pairs: 0.5 for equal laws (Mann-Whitney)."""
    ordered = np.sort(b)
    below = np.searchsorted(ordered, a, side="right")
    tied = below - np.searchsorted(ordered, a, side="left")
    return float(1 - (below - tied / 2).mean() / len(b))
