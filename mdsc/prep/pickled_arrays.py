"""Numeric numpy arrays of a pickle, made from what it says of their type, shape and bytes.

What a file names is recognised by its name, and never imported or called.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

NUMERIC = re.compile(r"[<>|=]?(f[248]|[iu][1248])")
ARRAY_MAKERS = {
    f"{core}.{name}": name.rpartition(".")[2]
    for core in ("numpy.core", "numpy._core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
}
NAMES = ARRAY_MAKERS | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype", "_codecs.encode": "encode"}
"""What a pickle of numeric arrays names -> what it is called here."""


class RefusedPickle(Exception):
    """The file is no pickle, is damaged, or would make more than plain things. The message says what."""


@dataclass(frozen=True)
class Named:
    """Something that the pickle names, of `NAMES`. It can be called by REDUCE here, and does nothing by itself."""

    name: str


@dataclass
class Dtype:
    code: str
    order: str = "<"

    def numpy(self) -> np.dtype:
        return np.dtype(self.order.replace("|", "") + self.code)


@dataclass
class Array:
    """An array that _reconstruct has made and BUILD fills."""

    values: np.ndarray | None = None


def array_of(values: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not (isinstance(dtype, Dtype) and isinstance(values, bytes | bytearray) and isinstance(shape, tuple)):
        raise RefusedPickle("it has arrays of other things than numbers")
    if not all(isinstance(size, int) and size >= 0 for size in shape) or order not in ("C", "F"):
        raise RefusedPickle("it is damaged (shape of an array)")
    if len(values) != prod(shape) * dtype.numpy().itemsize:
        raise RefusedPickle("it is damaged (size of an array)")
    return np.frombuffer(values, dtype.numpy()).reshape(shape, order=order)


def _make_dtype(code: Any, *_: Any) -> Dtype:
    if not (isinstance(code, str) and NUMERIC.fullmatch(code)):
        raise RefusedPickle(f"it has arrays of type {code!r}, and files of embeddings hold numbers alone")
    return Dtype(code.lstrip("<>|="), code[0] if code[0] in "<>|=" else "<")


def _make_scalar(dtype: Any, values: Any) -> float:
    return float(array_of(values, dtype, (), "C"))


def _make_bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedPickle("it is damaged (bytes written as text)")
    return text.encode("latin1")


def _never(*_: Any) -> Any:
    raise RefusedPickle("it makes an array in a way of its own")


MAKERS: dict[str, Callable] = {
    "_reconstruct": lambda *_: Array(),
    "scalar": _make_scalar,
    "_frombuffer": array_of,
    "dtype": _make_dtype,
    "encode": _make_bytes,
    "ndarray": _never,
}
