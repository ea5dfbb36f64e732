"""Pickles of plain things (dicts, lists, numbers, text, numeric arrays), read without Python's unpickler.

A pickle is a program for a stack machine, two of whose instructions call what it names: that is how a pickle runs a
stranger's code (Python's documentation of `pickle`, first paragraph). This machine knows the instructions that build
plain things and nothing else. What a pickle of numpy arrays names is recognised by name, and the arrays are made here
from their bytes; nothing that a file names is ever imported or called.

Long runs of floats, of which files of embeddings consist, stay arrays: 8 bytes a number and not 32.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from mdsc.prep.pickled_arrays import MAKERS, NAMES, Array, Dtype, Named, RefusedPickle, array_of

LEAST_RUN = 8
FLOAT, FRAME = 0x47, 0x95
FLOATS = np.dtype([("code", "u1"), ("value", ">f8")])


def read_plain(data: "bytes | memoryview") -> Any:
    """What the pickle holds: dict, list, tuple, str, bytes, int, float, bool, None, and numeric arrays.

    A list may hold float64 arrays for runs of its numbers (`vector_of` puts them together). Raises RefusedPickle.
    """
    try:
        return _Machine(data).run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError, UnicodeDecodeError) as error:
        raise RefusedPickle(f"it is damaged ({error})") from error


def vector_of(value: Any) -> np.ndarray | None:
    """A list, tuple or array of numbers as float64; None where it is something else."""
    if isinstance(value, Array):
        value = value.values
    if isinstance(value, np.ndarray):
        return value.astype(np.float64).ravel() if value.ndim == 1 or value.shape[:1] == (1,) else None
    if not isinstance(value, list | tuple):
        return None
    if not all(isinstance(part, int | float | np.ndarray) and not isinstance(part, bool) for part in value):
        return None
    return np.concatenate([np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in value] or [np.zeros(0)])


class _Machine:
    def __init__(self, data: "bytes | memoryview") -> None:
        self.data = memoryview(data)
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.data[self.at]
            self.at += 1
            if code == FLOAT:
                self.floats()
            elif code == ord("."):
                return self.one()
            elif code in _STEPS:
                _STEPS[code](self)
            else:
                raise RefusedPickle(
                    f"it does more than make plain things (instruction 0x{code:02x} at {self.at - 1:,})"
                )

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.data) - self.at:
            raise RefusedPickle("it ends too early")
        part = self.data[self.at : self.at + size]
        self.at += size
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, form: str) -> str:
        return str(self.take(self.number(form)), "utf-8", "surrogatepass")

    def one(self) -> Any:
        """The top of the stack; a run of floats is no single thing."""
        self.above_mark()
        value = self.stack.pop()
        if isinstance(value, _Run):
            raise RefusedPickle("it is damaged (numbers where one thing is due)")
        return value

    def above_mark(self) -> None:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise RefusedPickle("it is damaged (nothing above a mark)")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def floats(self) -> None:
        """This float and those that follow at once."""
        start = self.at - 1
        size = min((len(self.data) - start) // FLOATS.itemsize, 1 << 12)
        numbers = np.frombuffer(self.data, FLOATS, size, start)
        others = np.flatnonzero(numbers["code"] != FLOAT)
        length = int(others[0]) if len(others) else size
        if length == 0:
            raise RefusedPickle("it ends too early")
        self.at = start + length * FLOATS.itemsize
        values = numbers["value"][:length].astype(np.float64)
        if length < LEAST_RUN or not self.marks:
            self.stack += values.tolist()
        else:
            self.stack.append(values.view(_Run))

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in NAMES:
            raise RefusedPickle(f"it names {full}, and files of embeddings hold numbers alone")
        self.stack.append(Named(NAMES[full]))

    def line(self) -> str:
        start = self.at
        while self.data[self.at] != ord("\n"):
            self.at += 1
        self.at += 1
        return str(self.data[start : self.at - 1], "utf-8")

    def call(self) -> None:
        given, called = self.one(), self.one()
        if not (isinstance(called, Named) and isinstance(given, tuple)):
            raise RefusedPickle("it calls something that is no array")
        self.stack.append(MAKERS[called.name](*given))

    def build(self) -> None:
        state, target = self.one(), self.stack[-1]
        if isinstance(target, Dtype):
            _, target.order, *nested = state[:5]
            if target.order not in ("<", ">", "|", "=") or any(part is not None for part in nested):
                raise RefusedPickle("it has arrays of other things than numbers")
        elif isinstance(target, Array):
            _, shape, dtype, is_fortran, values = state
            target.values = array_of(values, dtype, shape, "F" if is_fortran else "C")
        else:
            raise RefusedPickle("it builds something that is no array")

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list) or isinstance(target, _Run):
            raise RefusedPickle("it is damaged (appends to what is no list)")
        target.extend(value.view(np.ndarray) if isinstance(value, _Run) else value for value in values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise RefusedPickle("it is damaged (items of what is no dict)")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int | float | bytes | None) or isinstance(value, _Run):
                raise RefusedPickle("it has a dict whose keys are no names")
            target[key] = value

    def tuple_of(self, size: int) -> None:
        self.stack.append(tuple(reversed([self.one() for _ in range(size)])))


class _Run(np.ndarray):
    """Consecutive floats that lie on the stack as one."""


def _step_long(machine: _Machine, form: str) -> None:
    machine.stack.append(int.from_bytes(machine.take(machine.number(form)), "little", signed=True))


def _step_mark(machine: _Machine) -> None:
    machine.marks.append(len(machine.stack))


def _step_stack_name(machine: _Machine) -> None:
    name, module = machine.one(), machine.one()
    machine.name(str(module), str(name))


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    FRAME: lambda m: m.take(8),
    ord("("): _step_mark,
    ord("0"): lambda m: m.one(),  # POP
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("K"): _push(lambda m: m.number("<B")),
    ord("M"): _push(lambda m: m.number("<H")),
    ord("J"): _push(lambda m: m.number("<i")),
    0x8A: lambda m: _step_long(m, "<B"),
    0x8B: lambda m: _step_long(m, "<i"),
    0x8C: _push(lambda m: m.text("<B")),  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
    ord("X"): _push(lambda m: m.text("<I")),
    0x8D: _push(lambda m: m.text("<Q")),
    ord("C"): _push(lambda m: bytes(m.take(m.number("<B")))),  # bytes of three lengths, and a bytearray
    ord("B"): _push(lambda m: bytes(m.take(m.number("<I")))),
    0x8E: _push(lambda m: bytes(m.take(m.number("<Q")))),
    0x96: _push(lambda m: bytearray(m.take(m.number("<Q")))),
    ord("}"): _push(lambda m: {}),
    ord("]"): _push(lambda m: []),
    ord(")"): _push(lambda m: ()),
    ord("t"): _push(lambda m: tuple(v.view(np.ndarray) if isinstance(v, _Run) else v for v in m.since_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("a"): lambda m: m.append([m.one()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("s"): lambda m: m.set_items([m.one(), m.one()][::-1]),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): _push(lambda m: m.memo[m.number("<B")]),
    ord("j"): _push(lambda m: m.memo[m.number("<I")]),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _step_stack_name,
    ord("R"): lambda m: m.call(),
    ord("b"): lambda m: m.build(),
}
