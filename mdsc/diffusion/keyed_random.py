"""Random numbers that are a function of their keys: same keys, same draw, on any device, in any batch, in any order.

A cell's draws must not depend on which other cells share its batch, on the number of processes, or on how often a run
was resumed, so there is no generator with a state. A chain of splitmix64 steps hashes the keys (Steele, Lea & Flood
2014, "Fast splittable pseudorandom number generators", with Stafford's mix 13): the last key counts along a splitmix64
stream whose start the keys before it have chosen.
"""

from enum import IntEnum

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


class Stream(IntEnum):
    """First key of every draw: two uses that share a seed, a step and a cell still get independent numbers."""

    STRATUM = 1  # how much of a cell is hidden
    HIDE = 2  # which of its positions
    REVEAL = 3  # which positions a sampler fills in now
    TOKEN = 4  # and with what
    DROPOUT = 5  # which features a layer drops
    BLOCK = 6  # which genes a backbone sees together
    NOISE = 7  # Gaussian noise of latents
    LEVEL = 8  # and how much of it
    VECTOR = 9  # which numbers of a gene embedding are dropped
    CONDITION = 16  # which conditions of a cell are unknown in training


def keyed_uniform(*keys: int | Tensor, after: int | Tensor = 0) -> Float64[Tensor, "..."]:
    """Uniform draws in the open interval (0, 1), one for each tuple of keys.

    keys: integers or integer tensors, which broadcast; the order matters. The fewer values a key takes, the earlier it
    should stand, because the hash of a prefix is computed on the prefix's shape alone. after: `keyed_state` of keys
    that stand before these.
    Returns (2 m + 1) / 2^53 for m of 52 random bits, which float64 holds exactly: never 0, never 1, and tails as thin
    as 1e-15 are reached (float32 draws stop at 2^-24).
    """
    return (_shifted(keyed_state(*keys, after=after), 12).double() + 0.5) * 2.0**-52


def keyed_state(*keys: int | Tensor, after: int | Tensor = 0) -> Int64[Tensor, "..."]:
    """The hash of these keys, and of those before them."""
    state = after
    for key in keys:
        key = torch.tensor(_wrapped(key)) if isinstance(key, int) else key.long()
        state = _mix(state + (key + 1) * _GOLDEN)
    return state


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _wrapped(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros moving in: torch has no unsigned 64-bit arithmetic, and >> on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(x: int) -> int:
    """The int64 with the low 64 bits of x."""
    return ((x + (1 << 63)) % (1 << 64)) - (1 << 63)


_GOLDEN = _wrapped(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, splitmix64's increment
