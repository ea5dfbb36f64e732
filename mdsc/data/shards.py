"""A folder of shards, read: cells as parquet rows (`genes`, `expressions`, conditions), a row group at a time.

The two list columns are Tahoe-100M's: gene token ids (int64) and raw counts (float32). Where a row starts with Tahoe's
CLS entry (id 1, value -2), or holds another id below 3, that entry is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from mdsc.data.genes import FIRST_TOKEN_ID, GeneStatistics, GeneVocabulary
from mdsc.data.manifest import Manifest, load_manifest
from mdsc.errors import UserError

if TYPE_CHECKING:
    from anndata import AnnData

REPAIR = "copy the file again, or prepare the data again"


@dataclass(frozen=True)
class RowGroupRef:
    file: str
    group: int
    rows: int


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Cells as CSR; entries of one cell are in the order of the file (ascending in all that mdsc writes)."""

    counts: Int32[np.ndarray, " nnz"]
    gene_index: Int32[np.ndarray, " nnz"]
    """Places in the vocabulary."""
    indptr: Int64[np.ndarray, " rows_plus_one"]
    cell_ids: np.ndarray
    """(rows,) of str."""
    conditions: dict[str, np.ndarray]
    """(rows,) of str each; "" is unknown."""


@dataclass(frozen=True, eq=False)
class ShardFolder:
    path: Path
    manifest: Manifest
    vocabulary: GeneVocabulary

    @classmethod
    def open(cls, path: str | Path) -> "ShardFolder":
        """Read manifest and genes, and check that every shard is there in full; no cell is read."""
        path = Path(path)
        manifest = load_manifest(path)
        for shard in manifest.shards:
            file = path / shard.file
            if not file.is_file():
                raise UserError(f"{file} is missing, though {path}/manifest.json lists it: {REPAIR}")
            if file.stat().st_size != shard.bytes:
                size = file.stat().st_size
                state = "truncated" if size < shard.bytes else "not the file that was prepared"
                raise UserError(f"{file} is {state}: it has {size:,} bytes and should have {shard.bytes:,}; {REPAIR}")
        return cls(path, manifest, GeneVocabulary.load(path))

    @cached_property
    def statistics(self) -> GeneStatistics:
        """Of the cells of split "train"."""
        return GeneStatistics.load(self.path)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def condition_columns(self) -> tuple[str, ...]:
        return self.manifest.condition_columns

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shard.split for shard in self.manifest.shards))

    @property
    def held_out_split(self) -> str:
        """The split that no training reads: "heldout", or else the first that is not "train"."""
        others = [split for split in self.splits if split != "train"]
        if not others:
            raise UserError(f"{self.path} has no held-out cells (all are of split train); give --input.")
        return "heldout" if "heldout" in others else others[0]

    def row_groups(self, split: str = "train") -> list[RowGroupRef]:
        self._check_split(split)
        shards = [shard for shard in self.manifest.shards if shard.split == split]
        return [RowGroupRef(shard.file, group, rows) for shard in shards for group, rows in enumerate(shard.row_groups)]

    def num_cells(self, split: str = "train") -> int:
        self._check_split(split)
        return sum(shard.rows for shard in self.manifest.shards if shard.split == split)

    def read(self, ref: RowGroupRef, columns: Sequence[str] | None = None) -> RowGroup:
        """Read and check one row group, with these condition columns (default: all).

        A `UserError` names file and row group if it does not read, holds an unknown or repeated gene or a count that
        is no positive integer.
        """
        columns = self.condition_columns if columns is None else tuple(columns)
        if unknown := [name for name in columns if name not in self.condition_columns]:
            known = ", ".join(self.condition_columns) or "none"
            raise UserError(f"{self.path} has no condition column {', '.join(unknown)}: it has {known}")
        where = f"{self.path / ref.file}, row group {ref.group}"
        try:
            with pq.ParquetFile(self.path / ref.file) as file:
                table = file.read_row_group(ref.group, columns=["genes", "expressions", "cell_id", *columns])
            genes, indptr = _flatten(table["genes"])
            values, value_indptr = _flatten(table["expressions"])
            conditions = {name: _strings(table[name]) for name in columns}
            cell_ids = _strings(table["cell_id"])
        except (pa.ArrowException, OSError, KeyError, IndexError) as error:
            raise UserError(f"{where} cannot be read ({str(error).splitlines()[0]}); {REPAIR}") from error
        fault = None
        if not np.array_equal(indptr, value_indptr):
            fault = "genes and expressions differ in length"
        elif len(indptr) != ref.rows + 1:
            fault = f"it has {len(indptr) - 1} rows and should have {ref.rows}"
        else:
            genes, values, indptr = _drop_special(genes, values, indptr)
            counts, gene_index = _as_counts(values), _look_up(genes, self.vocabulary.index_of_token)
            if counts is None:
                fault = "not all expressions are positive integers"
            elif gene_index is None:
                fault = "a gene id is not in genes.parquet"
            elif _repeats(genes, indptr):
                fault = "a cell has the same gene twice"
        if fault:
            raise UserError(f"{where}: {fault}; {REPAIR}")
        return RowGroup(counts, gene_index, indptr, cell_ids, conditions)

    def to_anndata(self, split: str = "train", max_cells: int | None = None) -> "AnnData":
        """The (first) cells of a split: int32 CSR counts in X, conditions in obs, symbols as var_names."""
        import pandas as pd
        import scipy.sparse as sp
        from anndata import AnnData

        refs = self.row_groups(split)
        if max_cells is not None:
            before = np.cumsum([0] + [ref.rows for ref in refs[:-1]])
            refs = [ref for ref, rows in zip(refs, before, strict=True) if rows < max_cells]
        groups = [self.read(ref) for ref in refs]
        width = len(self.vocabulary)
        blocks = [sp.csr_matrix((g.counts, g.gene_index, g.indptr), (len(g.indptr) - 1, width)) for g in groups]
        names = {name: np.concatenate([g.conditions[name] for g in groups]) for name in self.condition_columns}
        obs = pd.DataFrame(names, index=np.concatenate([g.cell_ids for g in groups]))
        var = pd.DataFrame({"ensembl_id": self.vocabulary.ensembl_ids}, index=list(self.vocabulary.symbols))
        return AnnData(sp.vstack(blocks, format="csr")[:max_cells], obs=obs[:max_cells], var=var)

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"{self.path} has no cells of split {split!r}: it has {', '.join(self.splits)}")


def _flatten(column: pa.ChunkedArray) -> tuple[np.ndarray, Int64[np.ndarray, " rows_plus_one"]]:
    """Values of a list column, and where each row starts in them."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    if lists.null_count or lists.values.null_count:
        raise pa.ArrowInvalid("a value is missing")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _drop_special(genes: np.ndarray, values: np.ndarray, indptr: np.ndarray) -> tuple[np.ndarray, ...]:
    if genes.min(initial=FIRST_TOKEN_ID) >= FIRST_TOKEN_ID:
        return genes, values, indptr
    keep = genes >= FIRST_TOKEN_ID
    return genes[keep], values[keep], np.concatenate([[0], np.cumsum(keep)])[indptr]


def _as_counts(values: np.ndarray) -> Int32[np.ndarray, " nnz"] | None:
    with np.errstate(invalid="ignore"):  # NaN and values beyond int32 differ from their cast, and are told so
        counts = values.astype(np.int32)
    good = counts.min(initial=1) >= 1 and bool((counts == values).all())
    return counts if good else None


def _look_up(genes: np.ndarray, index_of_token: np.ndarray) -> Int32[np.ndarray, " nnz"] | None:
    if genes.max(initial=0) >= len(index_of_token):
        return None
    places = index_of_token[genes]
    return places if places.min(initial=0) >= 0 else None


def _repeats(genes: np.ndarray, indptr: np.ndarray) -> bool:
    """Whether a gene stands twice in a cell; a sort is needed only where the genes do not ascend."""
    ascends = genes[1:] > genes[:-1]
    starts = indptr[1:-1]
    ascends[starts[(starts > 0) & (starts < len(genes))] - 1] = True
    if ascends.all():
        return False
    cell = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((genes, cell))
    return bool(((np.diff(genes[order]) == 0) & (np.diff(cell[order]) == 0)).any())


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.string()).fill_null("").to_numpy().astype(object)
