"""The cells of one h5ad file as a scratch file: checked, with genes as places in the vocabulary, cut by split.

A part's name is a digest of all that it depends on: the settings, the vocabulary, and the file's path, size and time.
So a part that is there is the right one, whoever wrote it, and an interrupted preparation goes on from it.
"""

import hashlib
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mdsc.atomic import replacing
from mdsc.data.anndata_counts import open_counts
from mdsc.data.genes import GeneVocabulary
from mdsc.errors import UserError
from mdsc.prep.held_out import SplitRule

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

# Of the file below; another number makes parts of an older one strangers.
VERSION = 1
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, eq=False)
class FilePart:
    """Where the cells are from and where they go."""

    source: Path
    layer: str | None
    num_cells: int
    condition_columns: tuple[str, ...]
    rule: SplitRule
    prefix: str
    """Put before the cells' names."""
    places: Int64[np.ndarray, " columns"]
    """Of the file's genes in the vocabulary; -1 is left out, and columns with one place are added up."""
    num_genes: int
    path: Path

    @classmethod
    def of(
        cls,
        folder: Path,
        source: Path,
        vocabulary: GeneVocabulary,
        places: Int64[np.ndarray, " columns"],
        *,
        layer: str | None,
        num_cells: int,
        condition_columns: tuple[str, ...],
        rule: SplitRule,
        prefix: str,
    ) -> "FilePart":
        stat = source.stat()
        settings = (VERSION, layer, condition_columns, rule, prefix, vocabulary.digest)
        told = repr((*settings, str(source.resolve()), stat.st_size, stat.st_mtime_ns)).encode()
        name = hashlib.sha256(told + places.tobytes()).hexdigest()[:32]
        path = folder / f"{name}.arrow"
        return cls(source, layer, num_cells, condition_columns, rule, prefix, places, len(vocabulary), path)


@dataclass(frozen=True, eq=False)
class SplitCells:
    """Some cells of one split."""

    split: str
    counts: "sp.csr_matrix"
    """(cells, genes of the vocabulary) int32."""
    conditions: dict[str, list[str | None]]
    cell_ids: list[str]


def write_part(part: FilePart) -> Iterator[int]:
    """Write the file, and tell after each chunk how many cells it had. Memory holds some thousand cells."""
    columns = (*part.condition_columns, *part.rule.columns)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        open_counts(part.source, part.layer, obs_columns=columns, unique_genes=False) as source,
        replacing(part.path) as beside,
        pa.OSFile(str(beside), "wb") as file,
        pa.ipc.new_file(file, _schema(part), options=options) as writer,
    ):
        start = 0
        for counts in source.chunks():
            counts = _placed(counts, part)
            obs = source.obs.iloc[start : start + counts.shape[0]]
            start += counts.shape[0]
            splits = part.rule.splits(obs)
            for split in dict.fromkeys(splits.tolist()):
                rows = np.flatnonzero(splits == split)
                writer.write_batch(_batch(part, split, counts[rows], obs.iloc[rows]))
            yield counts.shape[0]


def read_part(part: FilePart) -> Iterator[SplitCells]:
    """What `write_part` wrote, in its order."""
    import scipy.sparse as sp

    try:
        with pa.OSFile(str(part.path), "rb") as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                genes, counts = batch["genes"], batch["counts"]
                arrays = (counts.values.to_numpy(), genes.values.to_numpy(), genes.offsets.to_numpy())
                yield SplitCells(
                    batch["split"][0].as_py(),
                    sp.csr_matrix(arrays, shape=(len(batch), part.num_genes)),
                    {name: batch[_column(name)].to_pylist() for name in part.condition_columns},
                    batch["cell_id"].to_pylist(),
                )
    except (pa.ArrowException, OSError) as error:
        part.path.unlink(missing_ok=True)
        raise UserError(
            f"{part.path} cannot be read ({str(error).splitlines()[0]}) and was removed.\n"
            f"Give the same command again: it reads {part.source} anew."
        ) from error


def _placed(counts: "sp.csr_matrix", part: FilePart) -> "sp.csr_matrix":
    import scipy.sparse as sp

    places = part.places[counts.indices]
    indptr = counts.indptr
    data = counts.data
    if (part.places < 0).any():
        kept = places >= 0
        data, places = data[kept], places[kept]
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
    placed = sp.csr_matrix((data, places, indptr), (counts.shape[0], part.num_genes))
    placed.sum_duplicates()
    return placed


def _schema(part: FilePart) -> pa.Schema:
    numbers = pa.list_(pa.int32())
    fields = {"split": pa.string(), "cell_id": pa.string(), "genes": numbers, "counts": numbers}
    return pa.schema(fields | {_column(name): pa.string() for name in part.condition_columns})


def _column(condition: str) -> str:
    """Any name may be a condition's, those of the other columns too."""
    return f"condition {condition}"


def _batch(part: FilePart, split: str, counts: "sp.csr_matrix", obs: "pd.DataFrame") -> pa.RecordBatch:
    offsets = pa.array(counts.indptr.astype(np.int32))
    columns = [
        pa.array([split] * len(obs), pa.string()),
        pa.array([f"{part.prefix}{name}" for name in obs.index], pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(counts.indices.astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(counts.data)),
        *(pa.array(_strings(obs[name]), pa.string()) for name in part.condition_columns),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_schema(part))


def _strings(column: "pd.Series") -> list[str | None]:
    """A condition column as text; None where a value is missing."""
    return [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]


class PartReaders:
    """Writes the parts that are not there yet, in this process or in several others; a context manager."""

    def __init__(self, parts: Sequence[FilePart], num_workers: int) -> None:
        missing = [part for part in parts if not part.path.is_file()]
        self.num_found = len(parts) - len(missing)
        self._cells_found = sum(part.num_cells for part in parts) - sum(part.num_cells for part in missing)
        context = get_context("spawn")
        self._cells_read, self._stop = context.Value("q", 0), context.Event()
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[Path, Future] = {}
        if num_workers > 1 and len(missing) > 1:
            self._pool = ProcessPoolExecutor(
                min(num_workers, len(missing)), context, _start_worker, (self._cells_read, self._stop)
            )
            self._futures = {part.path: self._pool.submit(_work, part) for part in missing}

    @property
    def num_cells(self) -> int:
        """Cells that are read by now, in an earlier call too."""
        return self._cells_found + self._cells_read.value

    def until_there(self, part: FilePart) -> Iterator[None]:
        """Go on until this part is there; yields now and then."""
        if future := self._futures.get(part.path):
            while not future.done():
                wait([future], timeout=SECONDS_BETWEEN_LOOKS)
                yield
            try:
                future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a process of --num-workers was ended from outside, perhaps for want of memory.\n"
                    "Give the same command again with fewer: it goes on from the files that are done."
                ) from error
        elif not part.path.is_file():
            for cells in write_part(part):
                self._cells_read.value += cells
                yield

    def __enter__(self) -> "PartReaders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_cells_read = _stop = None


def _start_worker(cells_read, stop) -> None:
    """A worker ends when it is told to; Ctrl-C is for the process that started it."""
    global _cells_read, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _cells_read, _stop = cells_read, stop


def _work(part: FilePart) -> None:
    for cells in write_part(part):
        with _cells_read.get_lock():
            _cells_read.value += cells
        if _stop.is_set():
            raise KeyboardInterrupt
