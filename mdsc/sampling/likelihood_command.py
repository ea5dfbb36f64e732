"""`mdsc likelihood`: how likely a model finds cells, or some of their genes given others.

mdsc likelihood --checkpoint runs/a --input cells.h5ad --output scored.h5ad
mdsc likelihood --checkpoint runs/a --input cells.h5ad --output scored.csv --target-genes CD3D CD3E --given-genes g.txt
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mdsc.config.flags import parse_flags
from mdsc.sampling.pass_size import PassOptions


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    input: Path
    """h5ad file with raw counts; read a chunk of cells at a time."""
    output: Path
    """File to write: .h5ad for a copy of the input with more columns in obs, .csv or .parquet for these alone."""
    checkpoint: str | None = None
    """Checkpoint folder, or user/name[@revision] of the hub; by default the newest run in runs/."""
    target_genes: tuple[str, ...] = ()
    """Genes to score, or text files with one a line; by default all that the model knows and that are not given."""
    given_genes: tuple[str, ...] = ()
    """Genes that the model sees, alike; by default none. Genes in neither list are neither seen nor scored."""
    information: bool = False
    """Also log p(target | given) - log p(target), in nats per target gene; for models of the tokenizer `count`."""
    estimator: Literal["bound", "chain"] = "bound"
    """bound: from a few passes; chain: the chain rule in random orders, one pass for each target gene."""
    num_samples: int = 16
    """Draws of what is hidden of each cell, in pairs; two passes more make them less noisy. With chain: orders."""
    layer: str | None = None
    """Where the counts are: the name of a layer, or "raw"; by default X."""
    condition: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Conditions of all cells, as NAME=LEVEL; others come from the input's obs."""
    seed: int = 0
    """Seeds what is hidden."""
    passes: Annotated[PassOptions, tyro.conf.arg(name="")] = field(default_factory=PassOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; UserError for a user's mistake, before anything is written."""
    config = parse_flags(LikelihoodConfig, argv, __doc__)
    from mdsc.sampling.scored_files import score  # torch: seconds that --help and a wrong flag need not take

    score(config)
