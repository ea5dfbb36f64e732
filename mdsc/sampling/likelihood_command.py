"""`mdsc likelihood`: how likely a model finds cells, or some of their genes given others.

mdsc likelihood --checkpoint runs/a --input cells.h5ad --output scored.h5ad
mdsc likelihood --checkpoint runs/a --input cells.h5ad --output scored.csv --target-genes CD3D CD3E --given-genes g.txt
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mdsc.atomic import replacing
from mdsc.checkpoint import given_or_newest
from mdsc.config.flags import parse_flags
from mdsc.errors import UserError
from mdsc.sampling.anndata_cells import listed_genes
from mdsc.sampling.anndata_files import check_output
from mdsc.sampling.anndata_likelihood import CellScores, LikelihoodOptions, score_cells
from mdsc.sampling.annotated_copy import annotated_copy
from mdsc.sampling.conditions import condition_pairs
from mdsc.sampling.pass_size import PassOptions

TABLES = (".csv", ".parquet")


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
    score(parse_flags(LikelihoodConfig, argv, __doc__))


def score(config: LikelihoodConfig) -> CellScores:
    """Do it, write it, and say what came out."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    is_table = config.output.suffix in TABLES
    if not is_table and config.output.suffix != ".h5ad":
        raise UserError(f"--output: {config.output} ends in none of .h5ad, {', '.join(TABLES)}.")
    check_output(config.output.with_suffix(".h5ad"), config.input)
    options = LikelihoodOptions(
        target_genes=listed_genes(config.target_genes, "--target-genes"),
        given_genes=listed_genes(config.given_genes, "--given-genes"),
        information=config.information,
        estimator=config.estimator,
        num_samples=config.num_samples,
        seed=config.seed,
    )
    folder = given_or_newest(config.checkpoint, say)
    started = time.monotonic()
    scores = score_cells(
        folder,
        config.input,
        options,
        config.passes,
        layer=config.layer,
        condition=condition_pairs(chain(*config.condition)),
        say=say,
        show_progress=True,
    )
    if is_table:
        _write_table(scores, config)
    else:
        with annotated_copy(config.input, config.output) as copy:
            for name, values in scores.obs.items():
                copy.add_column("obs", name, values)
            copy.add_uns("mdsc_likelihood", scores.settings)
    say(scores.said)
    say(f"wrote {config.output}: {', '.join(scores.obs)} ({time.monotonic() - started:.0f} s)")
    return scores


def _write_table(scores: CellScores, config: LikelihoodConfig) -> None:
    import pandas as pd

    table = pd.DataFrame(scores.obs, index=pd.Index(scores.names, name="cell"))
    with replacing(config.output) as beside:
        table.to_csv(beside) if config.output.suffix == ".csv" else table.to_parquet(beside)
