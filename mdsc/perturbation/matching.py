"""Which unperturbed cell goes with which perturbed one. No cell was measured twice, so every pairing is a choice."""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from mdsc.errors import UserError

MATCHINGS = ("random", "batch", "ot")


def match(
    x: Float[np.ndarray, "n k"],
    y: Float[np.ndarray, "m k"],
    how: str,
    batch_of_x: np.ndarray | None = None,
    batch_of_y: np.ndarray | None = None,
    *,
    rng: np.random.Generator,
) -> Int[np.ndarray, " m"]:
    """For each y the row of an x.

    random: any, whatever the batch. batch: any of the same batch (plate, lane, sample). ot: the exact optimal transport
    plan of squared distances between the x and the y of each batch, all of one weight; a y whose mass comes from
    several x takes one of them by share. The costs of n times m cells of a batch are held at once: call it for each
    perturbation. Without batches, and for a y whose batch has no x, any x will do.

    Needs POT for ot (UserError without). ValueError where there is no x, or a value is not finite.
    """
    if how not in MATCHINGS:
        raise ValueError(f"no matching {how!r}: there are {', '.join(MATCHINGS)}")
    if not len(x):
        raise ValueError("no unperturbed cells to match with")
    rows = np.empty(len(y), dtype=np.int64)
    for of_x, of_y in _within_batches(len(x), len(y), *(2 * [None] if how == "random" else [batch_of_x, batch_of_y])):
        if how == "ot":
            rows[of_y] = of_x[_transported(x[of_x], y[of_y], rng)]
        else:
            rows[of_y] = rng.choice(of_x, len(of_y))
    return rows


def _within_batches(
    num_x: int, num_y: int, batch_of_x: np.ndarray | None, batch_of_y: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of x and of y that may go together; each y is in one of them."""
    all_x = np.arange(num_x)
    if (batch_of_x is None) != (batch_of_y is None):
        raise ValueError("batches are known of one side alone")
    if batch_of_x is None or batch_of_y is None:
        return [(all_x, np.arange(num_y))]
    batch_of_x, batch_of_y = np.asarray(batch_of_x), np.asarray(batch_of_y)
    parts = [(np.flatnonzero(batch_of_x == one), np.flatnonzero(batch_of_y == one)) for one in np.unique(batch_of_y)]
    return [(of_x if len(of_x) else all_x, of_y) for of_x, of_y in parts]


def _transported(
    x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"], rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    try:
        import ot
    except ImportError as error:
        raise UserError(
            "matching by optimal transport needs POT: pip install 'mdsc[perturbation]', or choose random or batch"
        ) from error
    cost = cdist(x, y, "sqeuclidean")
    if not np.isfinite(cost).all():
        raise ValueError("latents of cells to match are not finite")
    # An entry of the plan below its own rounding error is no mass.
    plan = ot.emd(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)), cost).clip(min=0)
    reached = (plan / plan.sum(axis=0)).cumsum(axis=0)
    # The first row at which the column's sum goes above u in [0, 1): one that has mass.
    return np.minimum((reached <= rng.random(len(y))).sum(axis=0), len(x) - 1)
