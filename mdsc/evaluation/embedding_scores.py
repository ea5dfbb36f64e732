"""Whether an embedding keeps what labels know: label transfer by neighbours, clusters, batches; beside PCA of counts.

accuracy, macro_f1     k nearest training cells vote on a cell's label, ties going to the label of the nearest; macro F1
                       is the mean over labels, so that rare ones count as much
silhouette             mean over cells of (b - a) / max(a, b): a the mean distance to cells of the same label, b to
                       those of the nearest other one (Rousseeuw 1987)
ari, nmi               adjusted Rand index and normalised mutual information of the labels with k-means clusters, as
                       many as there are labels; mean over NUM_KMEANS starts
batch_entropy          entropy of the batches among a cell's k neighbours, over that of batches as frequent as they are
                       in all cells: 1 if batches are mixed as by chance, 0 if each keeps to itself
batch_silhouette       silhouette of the batches among cells of one label, mean over labels: 0 if mixed
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from mdsc.errors import UserError
from mdsc.evaluation.generation_space import ExpressionSpace
from mdsc.evaluation.metrics import bootstrap_weights

NUM_FOLDS = 5
NUM_KMEANS = 5
MOST_SILHOUETTE = 2000
"""Cells of which distances are taken, drawn at random."""

Points = Float[np.ndarray, "cells k"]
Labels = Int[np.ndarray, " cells"]
Fold = tuple[np.ndarray, np.ndarray]
"""Rows that vote, and rows that are scored."""


@dataclass(frozen=True)
class EmbeddingScores:
    metrics: dict[str, float]
    """NaN where one is not defined."""
    standard_error: dict[str, float]
    """Bootstrap over cells of accuracy and macro F1; standard deviation over starts of ari and nmi."""
    right: Bool[np.ndarray, " scored"]
    """Of each cell that was scored: was its label right?"""


def pca_of(counts: sp.csr_matrix, num_components: int = 50) -> Callable[[np.ndarray], Points]:
    """Principal components of log-normalised counts: given the rows to fit on, points of all cells; kept for when the
    same rows come again."""
    fitted: dict[bytes, Points] = {}

    def points(rows: np.ndarray) -> Points:
        key = rows.tobytes()
        if key not in fitted:
            fitted[key] = ExpressionSpace.fit(counts[rows], num_components).project(counts)
        return fitted[key]

    return points


def folds_of(labels: Labels, is_train: Bool[np.ndarray, " cells"] | None, seed: int) -> list[Fold]:
    """The given split, or NUM_FOLDS parts that each have their share of every label."""
    if is_train is not None:
        return [(np.flatnonzero(is_train), np.flatnonzero(~is_train))]
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros((len(labels), 1)), labels))


def score_embedding(
    points: Points | Callable[[np.ndarray], Points],
    labels: Labels,
    folds: list[Fold],
    *,
    batches: Labels | None = None,
    num_neighbours: int = 15,
    seed: int = 0,
) -> EmbeddingScores:
    """points: (cells, k), or a function that fits them on rows: on those that vote in each fold for label transfer, and
    on the first fold's for all else."""
    from sklearn.metrics import f1_score, silhouette_score

    fitted = points if callable(points) else lambda rows: points
    predicted, scored = [], []
    for train, test in folds:
        of_fold = fitted(train)
        predicted.append(vote(of_fold[train], labels[train], of_fold[test], num_neighbours))
        scored.append(test)
    predicted, scored = np.concatenate(predicted), np.concatenate(scored)
    true, right = labels[scored], predicted == labels[scored]
    whole = fitted(folds[0][0])
    some = np.random.default_rng(seed).permutation(len(labels))[:MOST_SILHOUETTE]
    clusters = np.array(list(_cluster_scores(whole, labels, seed)))
    metrics = {
        "accuracy": float(right.mean()),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
        "silhouette": float(silhouette_score(whole[some], labels[some])) if _can_part(labels[some]) else np.nan,
        "ari": float(clusters[:, 0].mean()),
        "nmi": float(clusters[:, 1].mean()),
    }
    draws = [np.repeat(np.arange(len(true)), times) for times in bootstrap_weights(len(true), 50).astype(int)]
    f1 = [f1_score(true[rows], predicted[rows], average="macro", zero_division=0) for rows in draws]
    error = {
        "accuracy": float(right.std() / np.sqrt(len(right))),
        "macro_f1": float(np.std(f1, ddof=1)),
        "ari": float(clusters[:, 0].std(ddof=1)),
        "nmi": float(clusters[:, 1].std(ddof=1)),
    }
    if batches is not None:
        metrics |= batch_mixing(whole, labels, batches, num_neighbours, some)
    order = np.argsort(scored)
    return EmbeddingScores(metrics, error, right[order])


def vote(
    train: Float[np.ndarray, "cells k"], labels: Labels, test: Float[np.ndarray, "others k"], num_neighbours: int
) -> Int[np.ndarray, " others"]:
    """The most frequent label among each cell's nearest training cells (Euclidean); of several, the nearest one's."""
    from sklearn.neighbors import NearestNeighbors

    number = min(num_neighbours, len(train))
    _, nearest = NearestNeighbors(n_neighbors=number).fit(train).kneighbors(test)
    votes = np.zeros((len(test), labels.max() + 1))
    # Each has one vote, and nearer ones a little more: enough to part ties.
    for place in range(number):
        votes[np.arange(len(test)), labels[nearest[:, place]]] += 1 + (number + 1.0) ** -(place + 1)
    return votes.argmax(axis=1)


def batch_mixing(points: Points, labels: Labels, batches: Labels, num_neighbours: int, some: np.ndarray) -> dict:
    """`batch_entropy` and `batch_silhouette`; NaN where there is one batch alone."""
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    share = np.bincount(batches) / len(batches)
    if (share > 0).sum() < 2:
        return {"batch_entropy": np.nan, "batch_silhouette": np.nan}
    number = min(num_neighbours, len(points) - 1)
    _, nearest = NearestNeighbors(n_neighbors=number + 1).fit(points).kneighbors(points[some])
    of_nearest = batches[nearest[:, 1:]]
    found = np.mean([_entropy(np.bincount(row, minlength=len(share)) / number) for row in of_nearest])
    # What as many neighbours drawn at random have: less than the entropy of all cells, as they are few.
    drawn = np.random.default_rng(0).multinomial(number, share, size=2000) / number
    by_chance = np.mean([_entropy(row) for row in drawn])
    within = [
        silhouette_score(points[rows], batches[rows])
        for label in np.unique(labels)
        if _can_part(batches[rows := some[labels[some] == label]])
    ]
    return {
        "batch_entropy": float(found / by_chance),
        "batch_silhouette": float(np.mean(within)) if within else np.nan,
    }


def difference(first: EmbeddingScores, second: EmbeddingScores) -> tuple[float, float]:
    """Accuracy of the first less that of the second on the same cells, and its paired standard error."""
    gap = first.right.astype(float) - second.right.astype(float)
    return float(gap.mean()), float(gap.std() / np.sqrt(len(gap)))


def check_labels(labels: Labels, names: Mapping[int, str], is_train: Bool[np.ndarray, " cells"] | None) -> None:
    """Whether labels can be scored: two at least, each with a cell in every fold or on both sides of the split."""
    if len(names) < 2:
        raise UserError(f"--label has one value alone ({', '.join(names.values()) or 'none'}): nothing to tell apart.")
    if is_train is not None and (is_train.all() or not is_train.any()):
        raise UserError("--train-split: all cells are on one side of it; it must tell training cells from others.")


def _cluster_scores(points: Points, labels: Labels, seed: int) -> Iterator[tuple[float, float]]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    number = len(np.unique(labels))
    for start in range(NUM_KMEANS):
        found = KMeans(number, n_init=1, random_state=seed + start).fit_predict(points)
        yield adjusted_rand_score(labels, found), normalized_mutual_info_score(labels, found)


def _can_part(labels: Labels) -> bool:
    """A silhouette needs two labels, and fewer than there are cells."""
    return 2 <= len(np.unique(labels)) < len(labels)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
