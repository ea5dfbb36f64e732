"""`mdsc sample`, `python sample.py`: fill in hidden counts of cells, generate cells, or predict perturbed ones.

python sample.py --checkpoint runs/a --input cells.h5ad --mask-ratio 0.8 --output filled.h5ad
python sample.py --checkpoint runs/a --input cells.h5ad --mask-ratio 0.8 --num-draws 10 --output filled.h5ad
python sample.py --checkpoint runs/a --input cells.h5ad --mask-ratio 0 --impute-zeros --output filled.h5ad
python sample.py --checkpoint runs/a --num-cells 500 --condition drug=DMSO_TF --guidance 2 --output generated.h5ad
python sample.py --checkpoint runs/p --input controls.h5ad --perturbation SPI1 BHLHE40 --output predicted.h5ad

Any number of cells in the same memory; a command that was interrupted goes on when it is given again
(but --perturbation, which begins anew).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mdsc.config.flags import parse_flags
from mdsc.sampling.options import AnswerOptions, PredictionOptions, SamplerOptions
from mdsc.sampling.pass_size import PassOptions


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    checkpoint: str | None = None
    """Checkpoint folder, or user/name[@revision] of the hub; by default the newest run in runs/."""
    input: Path | None = None
    """h5ad file with raw counts; by default the held-out cells of the run's shards."""
    output: Path | None = None
    """h5ad file to write; by default filled.h5ad, generated.h5ad or predicted.h5ad in the checkpoint folder (here, if
    that is of the hub). One that is there is replaced at the end."""
    mask_ratio: float | None = None
    """Share of each cell's genes to hide and fill in, between 0 and 1."""
    impute_zeros: bool = False
    """With --mask-ratio 0: fill in the zeros, given the nonzero counts alone; a heuristic that expects too much."""
    layer: str | None = None
    """Where the counts of the input are: the name of a layer, or "raw"; by default X."""
    answer: Annotated[AnswerOptions, tyro.conf.arg(name="")] = field(default_factory=AnswerOptions)
    num_cells: int | None = None
    """Generate so many cells instead of filling in."""
    genes: Path | None = None
    """Text file with the genes of generated cells, one a line; by default all that the model knows."""
    condition: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Conditions of all cells, as NAME=LEVEL; when filling in, others come from the input's obs."""
    condition_features: tuple[str, ...] = ()
    """Features of levels that the model has not seen, as COLUMN=FILE (`mdsc prepare features` makes them)."""
    conditions_from: Path | None = None
    """h5ad file of which generated cells take the conditions, row by row; --num-cells is then all of its cells."""
    guidance: float = 1.0
    """How much conditions count: 1 samples the model itself, more follows them further than it would, 0 leaves them
    out. Other numbers than 0 and 1 take two passes for one."""
    perturbation: tuple[str, ...] = ()
    """Predict cells in which these genes are perturbed, as symbols, or two joined by +, or a text file with one a line;
    --input has the control cells."""
    prediction: Annotated[PredictionOptions, tyro.conf.arg(name="")] = field(default_factory=PredictionOptions)
    seen_under: tuple[str, ...] = ()
    """When filling in: conditions under which the visible counts were seen, as NAME=LEVEL, where these are not those
    of --condition; what is filled in is what the same cell would have under these."""
    sampling: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(default_factory=SamplerOptions)
    seed: int = 0
    """Seeds what is hidden and what is drawn; a cell's draws depend on it and on the cell's row."""
    passes: Annotated[PassOptions, tyro.conf.arg(name="")] = field(default_factory=PassOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; UserError for a user's mistake, before anything is written."""
    config = parse_flags(SampleConfig, argv, __doc__)
    from mdsc.sampling.sampled_files import sample  # torch: seconds that --help and a wrong flag need not take

    sample(config)
