"""Are values counts: what keeps them from it, in words, and which ones; and where else in a file there are counts."""

import numpy as np
from jaxtyping import Bool, Shaped


def described(location: str) -> str:
    return location if location in ("X", "raw") else f"layer {location!r}"


def where_counts_are(faults: dict[str, str], looked_at: str) -> str:
    """Elsewhere: the place that was looked at may fail after its first entries."""
    good = [place for place, fault in faults.items() if not fault and place != looked_at]
    if not good:
        return "Nothing else in the file holds counts either: put the raw counts (before any normalisation) in X."
    where = " and ".join(map(described, good))
    return f"Counts are in {where}: give --layer {good[0]}."


def fault_of(values: Shaped[np.ndarray, " entries"]) -> str:
    """What keeps `values` from being counts, with examples; "" if nothing does."""
    if values.dtype.kind in "bu" or len(values) == 0:
        return ""
    if values.dtype.kind not in "if":
        return f"values of type {values.dtype}"
    if not np.isfinite(values).all():
        return f"NaN or infinite values ({_share(~np.isfinite(values))})"
    if values.min() < 0:
        return f"negative values ({_share(values < 0)}, e.g. {values.min():.4g})"
    if values.max() > np.iinfo(np.int32).max:
        return f"values beyond the range of counts (e.g. {values.max():.4g})"
    if values.dtype.kind == "f":
        broken = values[values != np.rint(values)]
        if len(broken):
            examples = ", ".join(f"{value:.4g}" for value in broken[:2])
            return f"values that are no integers ({_share(values != np.rint(values))}, e.g. {examples})"
    return ""


def is_wrong(values: Shaped[np.ndarray, " entries"]) -> Bool[np.ndarray, " entries"]:
    """Which values `fault_of` tells of."""
    return ~((values >= 0) & (values <= np.iinfo(np.int32).max) & (values == np.rint(values)))


def _share(is_wrong: Bool[np.ndarray, " entries"]) -> str:
    """One wrong value is another mistake than all of them."""
    return f"{int(is_wrong.sum()):,} of {len(is_wrong):,} that were read"
