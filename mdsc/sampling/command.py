"""`mdsc sample`, `python sample.py`: fill in hidden counts of cells, or generate cells.

python sample.py --checkpoint runs/a --input cells.h5ad --mask-ratio 0.8 --output filled.h5ad
python sample.py --checkpoint runs/a --input cells.h5ad --mask-ratio 0 --impute-zeros --output filled.h5ad
python sample.py --checkpoint runs/a --num-cells 500 --condition drug=DMSO_TF --guidance 2 --output generated.h5ad
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mdsc.checkpoint import Checkpoint, checkpoint_folder, newest_run
from mdsc.config.flags import parse_flags
from mdsc.data.level_features import feature_files
from mdsc.errors import UserError
from mdsc.sampling.anndata_files import check_output, read_h5ad, read_obs, write_h5ad
from mdsc.sampling.anndata_generation import generate_anndata
from mdsc.sampling.anndata_inpainting import Hiding, inpaint_anndata
from mdsc.sampling.conditions import condition_pairs
from mdsc.sampling.guidance import check_guidance
from mdsc.sampling.held_out_cells import held_out_cells
from mdsc.sampling.loaded_model import opened
from mdsc.sampling.options import SamplerOptions

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    checkpoint: str | None = None
    """Checkpoint folder, or user/name[@revision] of the hub; by default the newest run in runs/."""
    input: Path | None = None
    """h5ad file with raw counts; by default the held-out cells of the run's shards."""
    output: Path | None = None
    """h5ad file to write; by default filled.h5ad or generated.h5ad in the checkpoint folder (here, if it is of the
    hub)."""
    mask_ratio: float | None = None
    """Share of each cell's genes to hide and fill in, between 0 and 1."""
    impute_zeros: bool = False
    """With --mask-ratio 0: fill in the zeros, given the nonzero counts alone; a heuristic that expects too much."""
    layer: str | None = None
    """Where the counts of the input are: the name of a layer, or "raw"; by default X."""
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
    sampling: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(default_factory=SamplerOptions)
    seed: int = 0
    """Seeds what is hidden and what is drawn; a cell's draws depend on it and on the cell's row."""
    batch_size: int | None = None
    """Cells at once; by default what suits the device. It changes no result but by rounding."""


def main(argv: Sequence[str]) -> None:
    """Run the command; UserError for a user's mistake, before anything is written."""
    sample(parse_flags(SampleConfig, argv, __doc__))


def sample(config: SampleConfig) -> Path:
    """Do it, and give the path of the file that was written."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    _check(config)
    is_filling = config.num_cells is None and config.conditions_from is None
    condition = condition_pairs(chain(*config.condition))
    folder = newest_run() if config.checkpoint is None else checkpoint_folder(config.checkpoint)
    if config.checkpoint is None:
        say(f"--checkpoint is not given: taking {folder}, the newest run")
    is_local = config.checkpoint is None or Path(config.checkpoint).is_dir()
    file_name = "filled.h5ad" if is_filling else "generated.h5ad"
    output = config.output or (folder / file_name if is_local else Path(file_name))
    checkpoint = opened(folder)
    if config.output is None:
        say(f"--output is not given: writing {output}")

    started = time.monotonic()
    options = {
        "condition": condition,
        "condition_features": feature_files(config.condition_features, "--condition-features"),
        "guidance": config.guidance,
        "say": say,
        **asdict(config.sampling),
        "seed": config.seed,
        "batch_size": config.batch_size,
        "show_progress": True,
    }
    if is_filling:
        adata, name = _cells(config, checkpoint, say)
        result = inpaint_anndata(
            checkpoint,
            adata,
            mask_ratio=config.mask_ratio,
            impute_zeros=config.impute_zeros,
            layer=config.layer,
            copy=False,
            name=name,
            **options,
        )
        what = "layers mdsc_sampled, mdsc_mean and mdsc_hidden"
    else:
        genes = None if config.genes is None else _listed(config.genes)
        taken = None if config.conditions_from is None else read_obs(config.conditions_from)
        number = len(taken) if config.num_cells is None else config.num_cells
        result = generate_anndata(checkpoint, number, conditions_from=taken, genes=genes, **options)
        what = f"{result.n_obs:,} new cells x {result.n_vars:,} genes"
    write_h5ad(result, output)
    say(f"wrote {output}: {what} ({time.monotonic() - started:.0f} s)")
    return output


def _check(config: SampleConfig) -> None:
    """What can be told before anything is read."""
    if config.output is not None:
        check_output(config.output, config.input)
    check_guidance(config.guidance)
    feature_files(config.condition_features, "--condition-features")
    if config.num_cells is None and config.conditions_from is None:
        if config.mask_ratio is None and config.input is None and not config.impute_zeros:
            raise UserError(
                "nothing to do: --mask-ratio 0.8 hides and fills in counts of cells (--input cells.h5ad),\n"
                "--num-cells 500 generates cells; --help lists all options."
            )
        Hiding.of(config.mask_ratio, config.impute_zeros, config.seed)
        if config.genes is not None:
            raise UserError("--genes chooses the genes of generated cells; give --num-cells, or leave it out.")
        return
    for flag, value in (
        ("--input", config.input),
        ("--mask-ratio", config.mask_ratio),
        ("--impute-zeros", config.impute_zeros or None),
        ("--layer", config.layer),
    ):
        if value is not None:
            raise UserError(f"{flag} is for filling in cells, and --num-cells generates new ones: give one of the two.")
    if config.conditions_from is not None and not config.conditions_from.is_file():
        raise UserError(f"--conditions-from: there is no file {config.conditions_from}.")


def _cells(config: SampleConfig, checkpoint: Checkpoint, say: Callable[[str], None]) -> tuple["AnnData", str]:
    """The AnnData to fill in, and what messages call it."""
    if config.input is not None:
        return read_h5ad(config.input, config.layer), str(config.input)
    if config.layer is not None:
        raise UserError("--layer is a place in the --input; the held-out cells of a run have none.")
    return held_out_cells(checkpoint, say)


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--genes: cannot read {path} ({error}).") from error
    return [line.strip() for line in lines if line.strip()]
