"""A folder of shards, read: cells as parquet rows (`genes`, `expressions`, conditions), a row group at a time.

The two list columns are Tahoe-100M's: gene token ids (int64) and raw counts (float32). Where a row starts with Tahoe's
CLS entry (id 1, value -2), that entry is dropped. A row without entries is a cell without counts.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mdsc.data.bit_masks import bit_mask, mask_bits
from mdsc.data.byte_ranges import DamagedFile, Location, RemoteFile, is_url
from mdsc.data.genes import GeneStatistics, GeneVocabulary
from mdsc.data.manifest import Manifest, Shard, load_manifest
from mdsc.data.range_cache import RangeCache
from mdsc.data.row_group_checks import cell_entries, first_line, strings
from mdsc.data.row_groups import Portion, RowGroup, RowGroupRef
from mdsc.data.shard_file import read_row_group
from mdsc.errors import UserError

if TYPE_CHECKING:
    from anndata import AnnData

REPAIR = "copy the file again, or prepare the data again"
HELDOUT = "heldout"


class CorruptRowGroup(UserError):
    """A row group that cannot be trusted; the message names its file and number, and `why` tells the rest."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}; {REPAIR}")
        self.why = why

    def __reduce__(self) -> tuple:
        """For processes that hand it on: an exception is otherwise made anew from its message alone."""
        return _corrupt, (self.args[0], self.why)


def _corrupt(message: str, why: str) -> CorruptRowGroup:
    error = CorruptRowGroup("", why)
    error.args = (message,)
    return error


@dataclass(frozen=True, eq=False)
class ShardFolder:
    path: Path
    manifest: Manifest
    vocabulary: GeneVocabulary
    verify: bool = True
    """Compare the hash of each row group that is read."""
    cache: RangeCache | None = None
    """Where row groups are kept that were read from far away."""

    @classmethod
    def open(
        cls, path: str | Path, *, verify: bool = True, check_sizes: bool = True, cache: RangeCache | None = None
    ) -> "ShardFolder":
        """Read manifest and genes, and check that every shard is there in full; no cell is read.

        Without `check_sizes` a truncated file is told when a row group of it is read.
        """
        path = Path(path)
        folder = cls(path, load_manifest(path), GeneVocabulary.load(path), verify, cache)
        for shard in folder.manifest.shards:
            if (fault := folder.file_fault(shard, check_sizes=check_sizes)) is not None:
                raise UserError(fault)
        return folder

    def file_fault(self, shard: Shard, *, check_sizes: bool = True) -> str | None:
        """What is wrong with a shard before it is read; None where it is there, and of the right size.

        A file under a URL is not asked for: there may be thousands, and each is checked when it is first read.
        """
        file = self.location(shard.file)
        if isinstance(file, RemoteFile):
            return None
        try:
            size = file.stat().st_size if file.is_file() else None
        except OSError:  # such as a name that is too long
            size = None
        if size is None:
            return f"{file} is missing, though {self.path}/manifest.json lists it: {REPAIR}"
        if check_sizes and size != shard.bytes:
            state = "truncated" if size < shard.bytes else "not the file that was prepared"
            return f"{file} is {state}: it has {size:,} bytes and should have {shard.bytes:,}; {REPAIR}"
        return None

    @cached_property
    def statistics(self) -> GeneStatistics:
        """Of the cells of split "train"."""
        return GeneStatistics.load(self.path)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def condition_columns(self) -> tuple[str, ...]:
        return tuple(self.manifest.conditions)

    @property
    def splits(self) -> tuple[str, ...]:
        named = dict.fromkeys(shard.split for shard in self.manifest.shards)
        return tuple(named | dict.fromkeys(HELDOUT for shard in self.manifest.shards if any(shard.heldout)))

    @property
    def held_out_split(self) -> str:
        """The split that no training reads: "heldout", or else the first that is not "train"."""
        others = [split for split in self.splits if split != "train"]
        if not others:
            raise UserError(f"{self.path} has no held-out cells (all are of split train); give --input.")
        return HELDOUT if HELDOUT in others else others[0]

    def row_groups(self, split: str = "train") -> list[RowGroupRef]:
        """The row groups that hold cells of a split."""
        self._check_split(split)
        return [
            ref
            for shard in self.manifest.shards
            for group in range(len(shard.row_groups))
            if (ref := _of_split(shard, group, split)) is not None
        ]

    def portions(self) -> list[Portion]:
        """The training cells: of a folder one portion, of a mixture (`mdsc.data.shard_mixture`) one for each folder."""
        measured = np.ones(len(self.vocabulary), dtype=bool)
        return [Portion(self.row_groups("train"), 1.0, measured, self.statistics.detection_rate)]

    def portion_of(self, ref: RowGroupRef) -> int:
        """Number of the portion that a row group is in."""
        return 0

    def num_cells(self, split: str = "train") -> int:
        return sum(ref.rows for ref in self.row_groups(split))

    def location(self, file: str) -> Location:
        """Where a shard is."""
        if is_url(self.manifest.root):
            return RemoteFile(f"{self.manifest.root}{file}", self._shards[file].bytes, self.cache)
        return self.path / self.manifest.root / file

    def read(self, ref: RowGroupRef, columns: Sequence[str] | None = None, *, with_cell_ids: bool = True) -> RowGroup:
        """Read and check one row group, with these condition columns (default: all).

        A `CorruptRowGroup` names file, row group and column if its bytes are not those that were prepared, if it does
        not decode, or if it holds an unknown or repeated gene or a count that is no positive integer. Where the bytes
        cannot be had (no file, no network), it is another `UserError`.
        """
        columns = self._checked(self.condition_columns if columns is None else columns)
        with self._telling(ref):
            return self._read(ref, columns, with_cell_ids)

    def read_conditions(self, ref: RowGroupRef, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Condition columns alone, (rows,) of str each, "" is unknown; errors are those of `read`."""
        columns = self._checked(columns)
        with self._telling(ref):
            text = self._text(self._table(ref, self._sources(columns)), self._sources(columns))
            found = {name: self._condition(name, text) for name in columns}
            rows = ref.chosen(self._shards[ref.file].row_groups[ref.group])
            return {name: values[rows] for name, values in found.items()}

    def _checked(self, columns: Sequence[str]) -> tuple[str, ...]:
        if unknown := [name for name in columns if name not in self.condition_columns]:
            known = ", ".join(self.condition_columns) or "none"
            raise UserError(f"{self.path} has no condition column {', '.join(unknown)}: it has {known}")
        return tuple(columns)

    @contextmanager
    def _telling(self, ref: RowGroupRef) -> Iterator[None]:
        try:
            yield
        except (DamagedFile, OSError) as error:
            where = f"{self.location(ref.file)}, row group {ref.group}"
            if isinstance(error, OSError) and error.errno != errno.EIO:  # all but a disk's bad sectors
                raise UserError(
                    f"{where} cannot be read: {first_line(error)}; see that the file can be read"
                ) from error
            raise CorruptRowGroup(where, first_line(error)) from error

    def _read(self, ref: RowGroupRef, conditions: tuple[str, ...], with_cell_ids: bool) -> RowGroup:
        ids = [self.manifest.cell_id_column] if with_cell_ids else []
        texts = [*ids, *self._sources(conditions)]
        table = self._table(ref, ["genes", "expressions", *texts])
        counts, gene_index, indptr = cell_entries(table, self.vocabulary.index_of_token)
        text = self._text(table, texts)
        found = {name: self._condition(name, text) for name in conditions}
        cell_ids = text[ids[0]] if ids else np.empty(0, dtype=object)
        group = RowGroup(counts, gene_index, indptr, cell_ids, found)
        return group.select(ref.chosen(len(table))) if ref.mask else group

    def _table(self, ref: RowGroupRef, columns: Sequence[str]) -> pa.Table:
        shard = self._shards[ref.file]
        table = read_row_group(
            self.location(ref.file),
            ref.group,
            list(dict.fromkeys(columns)),
            size=shard.bytes,
            hashes=shard.hashes,
            verify=self.verify,
        )
        if len(table) != shard.row_groups[ref.group]:
            raise DamagedFile(f"it has {len(table)} rows and should have {shard.row_groups[ref.group]}")
        return table

    def _sources(self, conditions: Sequence[str]) -> list[str]:
        """The columns of the files that these conditions are, or follow from."""
        lookups = self.manifest.lookups
        return [lookups[name].column if name in lookups else name for name in conditions]

    def _text(self, table: pa.Table, columns: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: strings(table, name) for name in dict.fromkeys(columns)}

    def _condition(self, name: str, text: dict[str, np.ndarray]) -> np.ndarray:
        lookup = self.manifest.lookups.get(name)
        if lookup is None:
            return text[name]
        return np.array([lookup.values.get(value, "") for value in text[lookup.column]], dtype=object)

    @cached_property
    def _shards(self) -> dict[str, Shard]:
        return {shard.file: shard for shard in self.manifest.shards}

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


def _of_split(shard: Shard, group: int, split: str) -> RowGroupRef | None:
    """The cells of a split in a row group; None where it has none."""
    rows, mask = shard.row_groups[group], shard.heldout[group] if shard.heldout else ""
    unused = shard.unused[group] if shard.unused else ""
    if not mask and not unused:
        return RowGroupRef(shard.file, group, rows) if rows and shard.split == split else None
    if split not in (shard.split, HELDOUT):
        return None
    is_heldout = mask_bits(mask, rows) | (shard.split == HELDOUT)
    chosen = (is_heldout if split == HELDOUT else ~is_heldout) & ~mask_bits(unused, rows)
    return RowGroupRef(shard.file, group, int(chosen.sum()), bit_mask(chosen)) if chosen.any() else None
