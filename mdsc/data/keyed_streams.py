"""Random numbers that are addressed instead of drawn in turn, so that no worker, rank or restart can change them.

Philox-4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps (key, counter) to random bits. Here
the key says what the numbers are for, and the upper three words of the counter say where they are used (epoch, step,
lane, ...). Two addresses never share a number: the lowest word, which a stream counts up, would have to overflow first.

Only raw 64-bit output is used: numpy keeps it for good, while the methods of its Generator may change with a release.
"""

from enum import IntEnum

import numpy as np
from jaxtyping import Float64, Int64

_WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """What a stream is for. Numbers are part of the reproducibility promise: add at the end, never renumber."""

    VALIDATION_ROWS = 1
    VALIDATION_BATCH = 2
    PIECES = 3
    ROWS = 4
    WINDOW = 5
    GENE_SET = 6
    EXPRESSED_GENES = 7
    SKETCH = 8
    FOLD = 9
    SUBSET = 10
    SUBSTITUTE = 11
    UNITS = 12
    SET_CELLS = 13
    MATCHING = 14


def stream(purpose: Purpose, seed: int, *address: int) -> np.random.Philox:
    """The stream of `purpose` under `seed` at an address of up to three integers (each taken modulo 2^64)."""
    assert len(address) <= 3, "a Philox counter has room for three words beside the running one"
    counter = [0, *(word & _WORD for word in address), 0, 0, 0][:4]
    # numpy reads a list with a word of 2^63 or more by way of float64, and hashes of row groups are rounded so, which
    # stays. A negative seed would overflow there, and be 0.
    key = [seed & _WORD, int(purpose)]
    return np.random.Philox(key=np.array(key, dtype=np.uint64) if seed < 0 else key, counter=counter)


def uniforms(source: np.random.Philox, size: int) -> Float64[np.ndarray, " size"]:
    """The next `size` uniform numbers of a stream, in the open interval (0, 1)."""
    # 52 bits and a half: with one bit more the largest would round to 1.
    return ((source.random_raw(size) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def permutation(source: np.random.Philox, size: int) -> Int64[np.ndarray, " size"]:
    """A uniformly random order of 0 .. size-1."""
    return np.argsort(source.random_raw(size), kind="stable")
