"""How far one set of cells is from another, group by group, with gradients that are finite where cells coincide.

x is (groups, n, k) and y, the data, is (groups, m, k); every answer is (groups,). The unbiased forms (U-statistics)
have mean 0 between sets of one law, whatever n is, and so fall below 0 half of the time. The biased ones (V-statistics,
the parent's, as in geomloss) count each cell's distance to itself and so cannot: the energy of two sets of n standard
normal cells is about sqrt(2k) / n. None sees which x belongs to which y: true noise, permuted across cells, is at 0.

The energy is half of Székely & Rizzo's 2E|x-y| - E|x-x'| - E|y-y'| (2013, Energy statistics, eq. 2.1), as in geomloss.
MMD^2 is Gretton et al. 2012 (JMLR 13, eq. 3 unbiased, eq. 5 biased), the kernel a mean of Gaussians of several widths.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

WIDTHS = (0.5, 1.0, 2.0, 4.0)
"""Of the kernels, times the median distance between cells of the data."""
_WIDTH_FLOOR = 1e-3
"""Times sqrt(k), where all cells of the data are the same."""


def mmd2_unbiased(
    x: Float[Tensor, "groups n k"], y: Float[Tensor, "groups m k"], widths: Sequence[float] = WIDTHS
) -> Float[Tensor, " groups"]:
    """Squared maximum mean discrepancy; 0 on average between sets of one law."""
    xx, xy, yy = _kernels(x, y, widths)
    return _mean_of_others(xx) + _mean_of_others(yy) - 2 * xy.mean(dim=(1, 2))


def mmd2_biased(
    x: Float[Tensor, "groups n k"], y: Float[Tensor, "groups m k"], widths: Sequence[float] = WIDTHS
) -> Float[Tensor, " groups"]:
    """The same with each cell's kernel of itself; never below 0."""
    xx, xy, yy = (kernel.mean(dim=(1, 2)) for kernel in _kernels(x, y, widths))
    return xx + yy - 2 * xy


def energy_unbiased(x: Float[Tensor, "groups n k"], y: Float[Tensor, "groups m k"]) -> Float[Tensor, " groups"]:
    """Half of the energy distance with Euclidean distances; 0 on average between sets of one law."""
    xx, xy, yy = _distances(x, y)
    return xy.mean(dim=(1, 2)) - (_mean_of_others(xx) + _mean_of_others(yy)) / 2


def energy_biased(x: Float[Tensor, "groups n k"], y: Float[Tensor, "groups m k"]) -> Float[Tensor, " groups"]:
    """The same with each cell's distance to itself; never below 0."""
    xx, xy, yy = (distance.mean(dim=(1, 2)) for distance in _distances(x, y))
    return xy - (xx + yy) / 2


def _distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Within x, between, within y. float32, and from differences: of squares little would be left for near cells.

    torch.cdist's gradient is 0 where a distance is 0.
    """
    if min(x.shape[1], y.shape[1]) < 2:
        raise ValueError(f"sets of {x.shape[1]} and {y.shape[1]} cells: each needs two")
    with torch.autocast(x.device.type, enabled=False):
        x, y = (values.to(torch.promote_types(values.dtype, torch.float32)) for values in (x, y))
        exact = "donot_use_mm_for_euclid_dist"
        return tuple(torch.cdist(a, b, compute_mode=exact) for a, b in ((x, x), (x, y), (y, y)))


def _kernels(x: Tensor, y: Tensor, widths: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    distances = _distances(x, y)
    yy = distances[2].detach()
    others = ~torch.eye(yy.shape[1], dtype=torch.bool, device=yy.device)
    median = yy[:, others].median(dim=1).values.clamp(min=_WIDTH_FLOOR * y.shape[2] ** 0.5)[:, None, None]
    return tuple(
        sum(torch.exp(-(distance / (width * median)).square() / 2) for width in widths) / len(widths)
        for distance in distances
    )


def _mean_of_others(pairs: Float[Tensor, "groups n n"]) -> Float[Tensor, " groups"]:
    """Mean over pairs of two different cells."""
    n = pairs.shape[1]
    return (pairs.sum(dim=(1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(dim=1)) / (n * (n - 1))
