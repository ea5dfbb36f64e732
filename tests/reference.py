"""Slow, plain versions of the mathematics: Python integers and float64 loops, written from the formulas."""

MASK64 = (1 << 64) - 1


def keyed_uniform(*keys: int) -> float:
    """splitmix64 in Python's unbounded integers."""
    state = 0
    for key in keys:
        state = (state + (key + 1) * 0x9E3779B97F4A7C15) & MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
        state = state ^ (state >> 31)
    return (2 * (state >> 12) + 1) / 2**53
