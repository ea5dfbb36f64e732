"""A folder of shards, written: cells arrive in any portions, leave in row groups of 1,000, at constant memory."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mdsc.atomic import replacing
from mdsc.data.genes import GeneStatistics, GeneVocabulary
from mdsc.data.manifest import Manifest, Shard
from mdsc.data.output_folders import check_output
from mdsc.data.shard_file import hash_parts
from mdsc.errors import UserError

if TYPE_CHECKING:
    import scipy.sparse as sp

ROWS_PER_GROUP = 1000
CELLS_PER_SHARD = 28_000  # as in Tahoe-100M: some 100 MB a file


class ShardWriter:
    """Writes beside `folder` and puts everything in its place when the `with` block ends well; else leaves nothing.

    `scratch` is the folder being written, for a producer that has a file of its own to add.
    """

    def __init__(
        self,
        folder: str | Path,
        vocabulary: GeneVocabulary,
        condition_columns: Sequence[str] = (),
        *,
        cells_per_shard: int = CELLS_PER_SHARD,
        sources: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if cells_per_shard < 1:
            raise UserError(f"cells_per_shard is {cells_per_shard}; give 1 or more")
        self.folder = check_output(folder)
        self.vocabulary = vocabulary
        self.condition_columns = tuple(condition_columns)
        self.sources = tuple(sources)
        self._cells_per_shard = cells_per_shard
        self._splits: dict[str, _SplitWriter] = {}
        self._totals = np.zeros((3, len(vocabulary)))
        self._levels: dict[str, set[str]] = {name: set() for name in condition_columns}
        self._num_train_cells = 0

    def __enter__(self) -> "ShardWriter":
        self._replacing = replacing(self.folder)
        self.scratch = self._replacing.__enter__()
        self.scratch.mkdir()
        return self

    def write(
        self,
        split: str,
        counts: "sp.csr_matrix",
        obs: Mapping[str, Sequence[str | None] | np.ndarray],
        cell_ids: Sequence[str] | np.ndarray,
    ) -> None:
        """Add cells: positive integer counts (cells, G) in the order of the vocabulary, and their conditions."""
        assert counts.shape == (len(cell_ids), len(self.vocabulary)), counts.shape
        if not re.fullmatch(r"[\w.-]+", split):
            raise UserError(f"split {split!r} cannot name a file: use letters, digits, '_', '-' and '.' only")
        counts.sort_indices()
        assert len(counts.data) == 0 or counts.data.min() > 0
        if split == "train":
            genes = counts.indices
            for row, weights in enumerate((None, counts.data, np.log1p(counts.data))):
                self._totals[row] += np.bincount(genes, weights, minlength=len(self.vocabulary))
            self._num_train_cells += len(cell_ids)
            for name, levels in self._levels.items():
                levels.update(obs[name])
        lengths = pa.array(counts.indptr.astype(np.int32))
        columns = {
            "genes": pa.ListArray.from_arrays(lengths, pa.array(self.vocabulary.token_ids[counts.indices])),
            "expressions": pa.ListArray.from_arrays(lengths, pa.array(counts.data.astype(np.float32))),
            "cell_id": pa.array(list(cell_ids), pa.string()),
        }
        columns |= {name: pa.array(list(obs[name]), pa.string()) for name in self.condition_columns}
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self.scratch, split, self._cells_per_shard)
        self._splits[split].add(pa.table(columns))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for writer in self._splits.values():
                writer.finish() if kind is None else writer.close()
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._replacing.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._replacing.__exit__(kind, error, trace)

    def _finish(self) -> None:
        if not self._num_train_cells:
            raise UserError(f"no cell is of split 'train' (splits: {', '.join(self._splits) or 'none'})")
        rates, means, logs = self._totals / self._num_train_cells
        self.vocabulary.save(self.scratch, GeneStatistics(rates, means, logs))
        shards = tuple(shard for writer in self._splits.values() for shard in writer.shards)
        conditions = {name: tuple(sorted(levels - {"", None})) for name, levels in self._levels.items()}
        Manifest(conditions=conditions, shards=shards, sources=self.sources).save(self.scratch)


class _SplitWriter:
    """The files of one split."""

    def __init__(self, folder: Path, split: str, cells_per_shard: int) -> None:
        self.shards: list[Shard] = []
        self._folder, self._split, self._cells_per_shard = folder, split, cells_per_shard
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._file: pq.ParquetWriter | None = None
        self._row_groups: list[int] = []

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._num_waiting += len(table)
        if self._num_waiting >= ROWS_PER_GROUP:
            self._drain(ROWS_PER_GROUP)

    def finish(self) -> None:
        self._drain(1)
        self._end_file()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _drain(self, at_least: int) -> None:
        """Write row groups while `at_least` rows wait."""
        rows = pa.concat_tables(self._waiting) if self._waiting else None
        while self._num_waiting >= at_least:
            room = self._cells_per_shard - sum(self._row_groups)
            size = min(ROWS_PER_GROUP, self._num_waiting, room)
            if self._file is None:
                path = self._folder / f"{self._split}-{len(self.shards):05d}.parquet"
                self._file = pq.ParquetWriter(path, rows.schema, compression="snappy")
            self._file.write_table(rows.slice(0, size).combine_chunks(), row_group_size=ROWS_PER_GROUP)
            self._row_groups.append(size)
            rows, self._num_waiting = rows.slice(size), self._num_waiting - size
            if size == room:
                self._end_file()
        self._waiting = [rows] if self._num_waiting else []

    def _end_file(self) -> None:
        if self._file is None:
            return
        self._file.close()
        path = Path(self._file.where)
        groups, hashes = hash_parts(path)
        assert groups == tuple(self._row_groups)
        size = path.stat().st_size
        self.shards.append(Shard(file=path.name, split=self._split, bytes=size, row_groups=groups, hashes=hashes))
        self._file, self._row_groups = None, []
