"""Some rows of a row group, as text in a manifest: the hex digits of a bit mask."""

import numpy as np


def bit_mask(chosen: np.ndarray) -> str:
    """A boolean array as the hex digits of numpy's packbits."""
    return np.packbits(chosen).tobytes().hex()


def mask_bits(mask: str, rows: int) -> np.ndarray:
    """The boolean array of `bit_mask`; "" is false everywhere."""
    if not mask:
        return np.zeros(rows, dtype=bool)
    return np.unpackbits(np.frombuffer(bytes.fromhex(mask), dtype=np.uint8), count=rows).astype(bool)
