"""Several folders of shards as one to train on, each with its share of every batch. Nothing is copied.

    mdsc prepare mixture shards/atlas shards/mine --weights 3 1 --output-dir shards/both

The output has the genes of all folders, joined by Ensembl id where there are ids, else by symbol. Cells are trained on
the genes that their own folder has measured. The folders stay where they are, and may not be prepared anew meanwhile.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from mdsc.atomic import replacing
from mdsc.config.flags import parse_flags
from mdsc.data.genes import FILE_NAME as GENES
from mdsc.data.genes import GeneStatistics, write_genes
from mdsc.data.mixed_plan import lane_owners
from mdsc.data.output_folders import check_mixture_output
from mdsc.data.shard_mixture import FILE_NAME, FORMAT, LARGEST_WEIGHT, VERSION, ShardMixture, column_of
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.joined_genes import FileGenes, join_genes

SHOWN_LANES = 8
# A folder has one lane of a batch or more, and a batch some thousand lanes at most.
SMALLEST_SHARE = 1e-4


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more folders of shards."""
    output_dir: Path
    """Folder for the mixture; replaced if it is one already."""
    weights: tuple[float, ...] = ()
    """Share of each folder in a batch, e.g. 3 1; by default the numbers of their training cells."""


def prepare_mixture(config: MixtureConfig) -> tuple[ShardMixture, list[str]]:
    """Make the folder; give it, and lines on the genes for the user."""
    members = [_member(path) for path in config.inputs]
    if len(members) < 2:
        raise UserError("a mixture is of two folders of shards or more")
    if twice := [path for path, times in Counter(path.resolve() for path in config.inputs).items() if times > 1]:
        raise UserError(f"{twice[0]} is given twice: give it a larger weight instead (--weights)")
    weights = config.weights or tuple(float(member.num_cells("train")) for member in members)
    if len(weights) != len(members) or not all(0 < weight < LARGEST_WEIGHT for weight in weights):
        raise UserError(f"--weights {' '.join(map(str, weights))}: give one positive number for each folder")
    output = config.output_dir
    if min(weights) < SMALLEST_SHARE * sum(weights):
        raise UserError(
            f"--weights {' '.join(map(str, weights))}: the smallest share is below {SMALLEST_SHARE:g} of each batch, "
            "which no number of lanes gives: make it larger, or leave that folder out"
        )
    check_mixture_output(output)

    genes = [FileGenes(str(m.path), m.vocabulary.symbols, m.vocabulary.ensembl_ids) for m in members]
    joined = join_genes(genes)
    names = _names(config.inputs)
    with replacing(output) as beside:
        beside.mkdir()
        joined.vocabulary.save(beside, _statistics(members, weights, joined.places, len(joined.vocabulary)))
        table = pq.read_table(beside / GENES)
        for number, places in enumerate(joined.places):
            own = np.full(len(joined.vocabulary), -1, dtype=np.int64)
            own[places] = np.arange(len(places))
            table = table.append_column(column_of(number), pa.array(own))
        write_genes(table, beside / GENES)
        stored = [
            {"name": name, "path": os.path.relpath(member.path.resolve(), output.resolve()), "weight": weight,
             "digest": member.digest}
            for name, member, weight in zip(names, members, weights, strict=True)
        ]  # fmt: skip
        text = json.dumps({"format": FORMAT, "version": VERSION, "members": stored}, indent=1)
        (beside / FILE_NAME).write_text(text + "\n", encoding="utf-8")
    return ShardMixture.open(output), list(joined.report)


def _member(path: Path) -> ShardFolder:
    if (path / FILE_NAME).is_file():
        raise UserError(f"{path} is a mixture itself: give the folders that it is made of")
    return ShardFolder.open(path)


def _names(paths: Sequence[Path]) -> list[str]:
    """Of the folders' own, made unique."""
    names: list[str] = []
    for path in paths:
        name, number = path.resolve().name or "shards", 2
        while name in names:
            name, number = f"{path.resolve().name}-{number}", number + 1
        names.append(name)
    return names


def _statistics(
    members: Sequence[ShardFolder], weights: Sequence[float], places: Sequence[np.ndarray], num_genes: int
) -> GeneStatistics:
    """Of each gene, the mean over the folders that have measured it, by weight."""
    total, sums = np.zeros(num_genes), {name: np.zeros(num_genes) for name in GeneStatistics.COLUMNS}
    for member, weight, own in zip(members, weights, places, strict=True):
        np.add.at(total, own, weight)
        for name, values in sums.items():
            np.add.at(values, own, weight * getattr(member.statistics, name))
    return GeneStatistics(**{name: values / total for name, values in sums.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """`mdsc prepare mixture shards/a shards/b --weights 3 1 --output-dir shards/both`"""
    config = parse_flags(MixtureConfig, argv, __doc__)
    mixture, report = prepare_mixture(config)
    print(f"{config.output_dir}: {len(mixture.vocabulary):,} genes")
    owners = None
    try:
        owners = lane_owners(mixture.weights, SHOWN_LANES)
    except UserError:
        print(f"{SHOWN_LANES} lanes are too few for these weights: train with a larger --data.num-lanes")
    total = sum(mixture.weights)
    for number, (name, member, weight) in enumerate(zip(mixture.names, mixture.members, mixture.weights, strict=True)):
        lanes = "" if owners is None else f", {owners.count(number)} of {SHOWN_LANES} lanes"
        print(
            f"  {name}: {member.num_cells('train'):,} training cells, {len(member.vocabulary):,} genes, "
            f"{weight / total:.0%} of each batch{lanes}"
        )
    print("\n".join(report))
