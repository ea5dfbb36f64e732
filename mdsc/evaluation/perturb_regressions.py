"""Effects as functions of features: ridge, nearest neighbours, random forest on gene sets, and a bilinear model."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from mdsc.data.perturbations import perturbed_genes
from mdsc.evaluation.perturb_training import TrainingEffects
from mdsc.evaluation.perturb_units import Unit

if TYPE_CHECKING:
    pass

LEAST_KEYS = 3
"""Training perturbations (or contexts) with features: with fewer there is nothing to choose a penalty by."""
ALPHAS = np.logspace(-3, 3, 13)
"""Times the mean square of the features."""
NEIGHBOURS = (1, 2, 3, 5, 8, 12, 20, 30)
BILINEAR_SIZE, BILINEAR_RIDGE = 10, 0.1
FOREST_TREES = 300
Effects = dict[Unit, Float64[np.ndarray, " genes"]]
Rows = Float64[np.ndarray, "keys features"]


def ridge(known: TrainingEffects) -> Effects | None:
    """Linear in the features, the penalty by leaving one training key out at a time."""
    from sklearn.linear_model import RidgeCV

    keys, features, effects = known.table
    if len(keys) < LEAST_KEYS:
        return None
    scale = np.square(features - features.mean(axis=0)).sum(axis=1).mean()
    if scale == 0:
        return None
    model = RidgeCV(alphas=ALPHAS * scale).fit(features, effects)
    return {unit: model.predict(known.vectors[known.key(unit)][None])[0] for unit in _known_units(known)}


def nearest_keys(known: TrainingEffects) -> dict[Unit, list[str]] | None:
    """The k nearest training keys of each unit by Euclidean distance of features. k has the least squared error when
    one training key at a time is left out."""
    from scipy.spatial.distance import cdist

    keys, features, effects = known.table
    if len(keys) < LEAST_KEYS:
        return None
    apart = cdist(features, features)
    np.fill_diagonal(apart, np.inf)
    order = np.argsort(apart, axis=1, kind="stable")
    errors = {
        k: np.square(effects[order[:, :k]].mean(axis=1) - effects).sum() for k in NEIGHBOURS if k <= len(keys) - 1
    }
    best = min(errors, key=lambda k: (errors[k], k))
    found = {}
    for unit in _known_units(known):
        nearest = np.argsort(cdist(known.vectors[known.key(unit)][None], features)[0], kind="stable")[:best]
        found[unit] = [keys[row] for row in nearest]
    return found


def nearest_mean(known: TrainingEffects) -> Effects | None:
    """Mean effect of the nearest keys."""
    found = nearest_keys(known)
    if found is None:
        return None
    return {unit: np.mean([known.effect_of_key[key] for key in keys], axis=0) for unit, keys in found.items()}


def forest(known: TrainingEffects) -> Effects | None:
    """Random forest on the gene sets (of GO, say) that a perturbed gene is in; a gene in none has no prediction.

    Trees average training effects, and see distances of effects alone: so they may be grown on all principal components
    of the effects, which keeps both.
    """
    from sklearn.ensemble import RandomForestRegressor

    if known.seen.gene_sets is None or known.by_context:
        return None
    sets = {key: _sets_of(known, key) for key in [*known.units_of, *map(known.key, known.wanted)]}
    keys = [key for key in known.units_of if sets[key]]
    if len(keys) < LEAST_KEYS:
        return None
    # A set with one training gene says nothing that could be carried over to another.
    counts: dict[str, int] = {}
    for key in keys:
        for name in sets[key]:
            counts[name] = counts.get(name, 0) + 1
    names = sorted(name for name, times in counts.items() if times > 1)
    if not names:
        return None
    effects = np.stack([known.effect_of_key[key] for key in keys])
    mean = effects.mean(axis=0)
    left, size, right = np.linalg.svd(effects - mean, full_matrices=False)

    def membership(key: str) -> np.ndarray:
        return np.array([name in sets[key] for name in names], dtype=np.float64)

    model = RandomForestRegressor(FOREST_TREES, max_features=1 / 3, min_samples_leaf=2, random_state=known.seed)
    model.fit(np.stack([membership(key) for key in keys]), left * size)
    units = [unit for unit in known.wanted if sets[known.key(unit)]]
    return {unit: mean + model.predict(membership(known.key(unit))[None])[0] @ right for unit in units}


def bilinear(known: TrainingEffects) -> Effects | None:
    """Effects Y (genes, perturbations) = b + G K P^T, b the mean effect (Ahlmann-Eltze, Huber & Anders 2025, "linear
    model"). G: genes by the principal components of the training pseudobulks; P: the rows of G of the perturbed genes,
    so that these must be measured. K by ridge on both sides."""
    if known.by_context:
        return None
    seen = known.seen
    keys = [key for key in known.units_of if known.target_columns(key)]
    if len(keys) < LEAST_KEYS:
        return None
    bulks = np.stack([seen.mean(unit, "train") for unit in seen.training_units], axis=1)
    left, size, _ = np.linalg.svd(bulks - bulks.mean(axis=0), full_matrices=False)
    number = min(BILINEAR_SIZE, bulks.shape[1])
    genes = left[:, :number] * size[:number]

    def of(key: str) -> np.ndarray:
        return genes[known.target_columns(key)].sum(axis=0)

    effects = np.stack([known.effect_of_key[key] for key in keys], axis=1)
    perturbations = np.stack([of(key) for key in keys])
    mean = effects.mean(axis=1)
    penalty = BILINEAR_RIDGE * np.eye(number)
    from_left = np.linalg.solve(genes.T @ genes + penalty, genes.T @ (effects - mean[:, None]))
    kernel = np.linalg.solve(perturbations.T @ perturbations + penalty, (from_left @ perturbations).T).T
    units = [unit for unit in known.wanted if known.target_columns(unit.perturbation)]
    return {unit: mean + genes @ kernel @ of(known.key(unit)) for unit in units}


def _known_units(known: TrainingEffects) -> list[Unit]:
    return [unit for unit in known.wanted if known.key(unit) in known.vectors]


def _sets_of(known: TrainingEffects, key: str) -> frozenset[str]:
    """Of all genes of a perturbation."""
    return frozenset().union(*(known.seen.gene_sets.get(gene, frozenset()) for gene in perturbed_genes(key)))
