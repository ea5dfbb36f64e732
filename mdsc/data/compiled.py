"""Loops as machine code, where numba is installed: `pip install "mdsc[fast]"`; MDSC_NUMBA=0 turns it off.

Each loop stands beside a numpy form that gives the same bits, so that a run may go on with or without numba.
"""

import os
from collections.abc import Callable
from functools import cache
from inspect import unwrap


def compiled(loop: Callable) -> Callable | None:
    """The loop compiled (at its first call, and kept on disk); None where numba is missing or turned off."""
    return None if os.environ.get("MDSC_NUMBA") == "0" else _compile(loop)


@cache
def _compile(loop: Callable) -> Callable | None:
    try:
        from numba import njit
    except ImportError:
        return None
    loop = unwrap(loop)  # from the check of shapes that tests put around every function
    # nogil: the thread that reads ahead shall not stop the one that trains.
    try:
        return njit(loop, nogil=True, cache=True)
    except RuntimeError:  # no folder that can be written to for what is kept
        return njit(loop, nogil=True)
