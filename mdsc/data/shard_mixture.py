"""Several folders of shards as one data set, each with a share of every batch; nothing of them is copied.

`mixture.json` names the folders, and `genes.parquet` beside it has the genes of all of them, with a column for each
folder that says where in its own vocabulary a gene is. A gene that a folder has not measured is not a zero there: it is
in no gene set of its cells, and no statistic counts it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mdsc.data.byte_ranges import Location
from mdsc.data.genes import FILE_NAME as GENES
from mdsc.data.genes import GeneVocabulary, read_genes
from mdsc.data.manifest import Manifest, is_text
from mdsc.data.row_groups import Portion, RowGroup, RowGroupRef
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError

FILE_NAME = "mixture.json"
FORMAT = "mdsc-mixture"
VERSION = 1
LARGEST_WEIGHT = 1e100
"""Sums of them are finite."""


@dataclass(frozen=True, eq=False)
class ShardMixture(ShardFolder):
    """`manifest` lists the shards of all folders, each file under its folder's name."""

    members: tuple[ShardFolder, ...] = ()
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    """Shares of a batch; any positive numbers."""
    places: tuple[Int64[np.ndarray, " _"], ...] = ()
    """Of each folder's genes in the vocabulary."""

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> "ShardMixture":
        """Read `mixture.json` and open its folders; options are those of `ShardFolder.open`."""
        path = Path(path)
        stored = read_mixture(path / FILE_NAME)
        members = []
        for one in stored["members"]:
            member = ShardFolder.open(path / one["path"], **options)
            if member.digest != one["digest"]:
                raise UserError(
                    f"{path / one['path']} is not the folder that {path} was made of: it was prepared anew.\n"
                    "Make the mixture again with `mdsc prepare mixture`."
                )
            members.append(member)
        names, weights = (
            tuple(one["name"] for one in stored["members"]),
            tuple(one["weight"] for one in stored["members"]),
        )
        vocabulary = GeneVocabulary.load(path)
        places = _places(path / GENES, vocabulary, members)
        manifest = _joined_manifest(names, members)
        rest = {name: options[name] for name in ("verify", "cache") if name in options}
        return cls(
            path, manifest, vocabulary, **rest, members=tuple(members), names=names, weights=weights, places=places
        )

    @cached_property
    def digest(self) -> str:
        return replace(self.manifest, sources=({"weights": self.weights},)).digest

    def portions(self) -> list[Portion]:
        refs = self.row_groups("train")
        measured = [np.zeros(len(self.vocabulary), dtype=bool) for _ in self.members]
        for of_member, places in zip(measured, self.places, strict=True):
            of_member[places] = True
        rates = [np.zeros(len(self.vocabulary)) for _ in self.members]
        for rate, places, member in zip(rates, self.places, self.members, strict=True):
            rate[places] = member.statistics.detection_rate
        return [
            Portion([ref for ref in refs if self.portion_of(ref) == number], weight, measured[number], rates[number])
            for number, weight in enumerate(self.weights)
        ]

    def portion_of(self, ref: RowGroupRef) -> int:
        return self.names.index(ref.file.partition("/")[0])

    def location(self, file: str) -> Location:
        name, _, rest = file.partition("/")
        return self.members[self.names.index(name)].location(rest)

    def read(self, ref: RowGroupRef, columns: Sequence[str] | None = None, *, with_cell_ids: bool = True) -> RowGroup:
        columns = self._checked(self.condition_columns if columns is None else columns)
        number, member, local = self._local(ref)
        known = [name for name in columns if name in member.condition_columns]
        group = member.read(local, known, with_cell_ids=with_cell_ids)
        return replace(
            group,
            gene_index=self.places[number][group.gene_index].astype(np.int32),
            conditions=self._with_unknown(columns, group.conditions, len(group.indptr) - 1),
        )

    def read_conditions(self, ref: RowGroupRef, columns: Sequence[str]) -> dict[str, np.ndarray]:
        columns = self._checked(columns)
        _, member, local = self._local(ref)
        found = member.read_conditions(local, [name for name in columns if name in member.condition_columns])
        return self._with_unknown(columns, found, ref.rows)

    def _with_unknown(self, columns: Sequence[str], found: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        unknown = np.full(rows, "", dtype=object)
        return {name: found.get(name, unknown) for name in columns}

    def _local(self, ref: RowGroupRef) -> tuple[int, ShardFolder, RowGroupRef]:
        number = self.portion_of(ref)
        return number, self.members[number], replace(ref, file=ref.file.partition("/")[2])


def open_shards(path: str | Path, **options: Any) -> ShardFolder:
    """A folder of shards, or a mixture of several; options are those of `ShardFolder.open`."""
    is_mixture = (Path(path) / FILE_NAME).is_file()
    return ShardMixture.open(path, **options) if is_mixture else ShardFolder.open(path, **options)


def _joined_manifest(names: Sequence[str], members: Sequence[ShardFolder]) -> Manifest:
    levels: dict[str, set[str]] = {}
    for member in members:
        for name, known in member.manifest.conditions.items():
            levels.setdefault(name, set()).update(known)
    shards = tuple(
        replace(shard, file=f"{name}/{shard.file}")
        for name, member in zip(names, members, strict=True)
        for shard in member.manifest.shards
    )
    sources = tuple(source for member in members for source in member.manifest.sources)
    return Manifest(
        conditions={name: tuple(sorted(known)) for name, known in levels.items()}, shards=shards, sources=sources
    )


def read_mixture(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["format"], stored["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is of another format or version than {FORMAT} {VERSION}")
        for one in stored["members"]:
            texts = (one["name"], one["path"], one["digest"])
            if not all(map(is_text, texts)) or "/" in one["name"]:
                raise ValueError("a name, path or digest is wrong")
            if not (isinstance(one["weight"], int | float) and 0 < one["weight"] < LARGEST_WEIGHT):
                raise ValueError(f"weight {one['weight']!r}")
        if not stored["members"] or len({one["name"] for one in stored["members"]}) < len(stored["members"]):
            raise ValueError("members are missing, or named alike")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): make the mixture again") from error
    return stored


def _places(
    path: Path, vocabulary: GeneVocabulary, members: Sequence[ShardFolder]
) -> tuple[Int64[np.ndarray, " _"], ...]:
    """Of each folder's genes in the vocabulary, out of the columns that say it the other way round."""
    found = []
    for number, member in enumerate(members):
        own = read_genes(path, {column_of(number): pa.int64()})[column_of(number)].to_numpy()
        places = np.full(len(member.vocabulary), -1, dtype=np.int64)
        known = np.flatnonzero((own >= 0) & (own < len(places)))
        places[own[known]] = known
        if len(own) != len(vocabulary) or (places < 0).any():
            raise UserError(f"{path} does not fit the genes of {member.path}: make the mixture again")
        found.append(places)
    return tuple(found)


def column_of(number: int) -> str:
    """Of genes.parquet: the place of each gene in the vocabulary of this folder, -1 where it lacks it."""
    return f"place_in_{number}"
