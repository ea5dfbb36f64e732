"""Cells that are done, kept beside an output until all of them are, so that a killed command goes on behind them.

    .filled.h5ad.parts/task.json                     a digest of all that the cells depend on
    .filled.h5ad.parts/000000000-000000512.safetensors   cells 0 to 511

A part is there whole or not at all, and the parts follow each other without a gap. Those of another task are removed.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float64

from mdsc.atomic import replacing
from mdsc.errors import UserError
from mdsc.sampling.filled_layers import Portion, joined

SECONDS = 20.0
"""Work that a kill costs at most, beside that of the cells of one pass."""
MAX_BYTES = 32_000_000
"""Memory of the cells that are not on disk yet."""
TASK = "task.json"
PART = re.compile(r"(\d+)-(\d+)\.safetensors")
CSR = ("data", "indices", "indptr")


def task_digest(task: Mapping[str, Any]) -> str:
    """SHA-256 in hex of what JSON can tell: numbers, texts, lists and mappings."""
    return hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()


class FinishedCells:
    """A context manager; in it `num_cells` are done. What it holds is kept after anything but a `UserError`."""

    def __init__(self, output: Path, digest: str, num_columns: int, say: Callable[[str], None]):
        self.output, self.folder = output, output.with_name(f".{output.name}.parts")
        self.digest, self.num_columns, self.say = digest, num_columns, say
        self.num_cells = 0
        self._saved: list[Path] = []
        self._waiting: list[Portion] = []
        self._bytes, self._last = 0, time.monotonic()

    def __enter__(self) -> "FinishedCells":
        if self.folder.exists():
            if self._is_same_task():
                self._find()
            else:
                self.say(f"{self.output} was left unfinished with other options, cells or weights: beginning anew")
                shutil.rmtree(self.folder)
        return self

    def add(self, portion: Portion) -> None:
        """The cells that come next."""
        self._waiting.append(portion)
        self._bytes += sum(array.nbytes for array in _arrays(portion).values())
        self.num_cells += int(portion.totals[0])
        if self._bytes >= MAX_BYTES or time.monotonic() - self._last >= SECONDS:
            self._save()

    def __iter__(self) -> Iterator[Portion]:
        """All of them in order, a part at a time."""
        for path in self._saved:
            yield self._read(path)
        yield from self._waiting

    @property
    def num_bytes(self) -> int:
        """Of all that is done, uncompressed."""
        return self._bytes + sum(path.stat().st_size for path in self._saved)

    @property
    def totals(self) -> Float64[np.ndarray, " 4"]:
        from safetensors import safe_open

        totals = sum((portion.totals for portion in self._waiting), np.zeros(4))
        for path in self._saved:
            with safe_open(path, framework="numpy") as file:
                totals += file.get_tensor("totals")
        return totals

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, UserError):
            shutil.rmtree(self.folder, ignore_errors=True)
        elif issubclass(kind, KeyboardInterrupt):
            self._save()
            raise KeyboardInterrupt(
                f"{self.num_cells:,} cells are kept: the same command goes on with the next"
            ) from None

    def _is_same_task(self) -> bool:
        try:
            return json.loads((self.folder / TASK).read_text(encoding="utf-8"))["digest"] == self.digest
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _find(self) -> None:
        found = {
            int(match[1]): (int(match[2]), path)
            for path in self.folder.iterdir()
            if (match := PART.fullmatch(path.name))
        }
        while self.num_cells in found:
            self.num_cells, path = found[self.num_cells]
            self._saved.append(path)
        if self.num_cells:
            self.say(
                f"going on after {self.num_cells:,} cells that an interrupted command has left beside {self.output}"
            )

    def _save(self) -> None:
        from safetensors.numpy import save

        if not self._waiting:
            return
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            with replacing(self.folder / TASK) as beside:
                beside.write_text(json.dumps({"digest": self.digest}), encoding="utf-8")
        names = self._waiting[0].layers
        whole = Portion(
            {name: joined([portion.layers[name] for portion in self._waiting]) for name in names},
            sum(portion.totals for portion in self._waiting),
        )
        path = self.folder / f"{self.num_cells - int(whole.totals[0]):09d}-{self.num_cells:09d}.safetensors"
        with replacing(path) as beside:
            beside.write_bytes(save(_arrays(whole)))  # save_file would hide that a disk is full
        self._saved.append(path)
        self._waiting.clear()
        self._bytes, self._last = 0, time.monotonic()

    def _read(self, path: Path) -> Portion:
        import scipy.sparse as sp
        from safetensors.numpy import load_file

        arrays = load_file(path)
        totals = arrays.pop("totals")
        layers: dict[str, sp.csr_matrix | np.ndarray] = {}
        for name in dict.fromkeys(key.partition("/")[0] for key in arrays):
            if name in arrays:
                layers[name] = arrays[name]
            else:
                parts = tuple(arrays[f"{name}/{part}"] for part in CSR)
                layers[name] = sp.csr_matrix(parts, (int(totals[0]), self.num_columns))
        return Portion(layers, totals)


def _arrays(portion: Portion) -> dict[str, np.ndarray]:
    arrays = {"totals": portion.totals}
    for name, layer in portion.layers.items():
        if isinstance(layer, np.ndarray):
            arrays[name] = layer
        else:
            arrays |= {f"{name}/{part}": getattr(layer, part) for part in CSR}
    return arrays
