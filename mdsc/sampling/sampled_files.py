"""h5ad files of cells that are filled in or generated, at constant memory; what was interrupted goes on."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mdsc.atomic import alone
from mdsc.checkpoint import Checkpoint, given_or_newest, weights_digest
from mdsc.data.anndata_counts import open_counts
from mdsc.data.h5ad_writer import H5adWriter
from mdsc.data.level_features import feature_files
from mdsc.data.row_group_checks import first_line
from mdsc.errors import UserError
from mdsc.progress import lines_on_console
from mdsc.sampling.anndata_cells import genes_in_file
from mdsc.sampling.anndata_files import check_output, read_obs, write_filled
from mdsc.sampling.anndata_generation import Generation
from mdsc.sampling.anndata_inpainting import Inpainting
from mdsc.sampling.command import SampleConfig
from mdsc.sampling.conditions import ConditionRequest, condition_pairs
from mdsc.sampling.finished_cells import FinishedCells, task_digest
from mdsc.sampling.held_out_cells import held_out_cells
from mdsc.sampling.hiding import Hiding
from mdsc.sampling.loaded_model import opened
from mdsc.sampling.options import PredictionOptions
from mdsc.sampling.predicted_files import predict

if TYPE_CHECKING:
    from anndata import AnnData


def sample(config: SampleConfig) -> Path:
    """Do it, and give the path of the file that was written."""
    if config.perturbation:
        return predict(config)
    say = lines_on_console()
    _check(config)
    is_filling = config.num_cells is None and config.conditions_from is None
    asked = _asked(config)
    folder = given_or_newest(config.checkpoint, say)
    is_local = config.checkpoint is None or Path(config.checkpoint).is_dir()
    file_name = "filled.h5ad" if is_filling else "generated.h5ad"
    output = config.output or (folder / file_name if is_local else Path(file_name))
    checkpoint = opened(folder)
    if config.output is None:
        say(f"--output is not given: writing {output}")

    started = time.monotonic()
    what = (_fill_in if is_filling else _generate)(config, checkpoint, asked, folder, output, say)
    say(f"wrote {output}: {what} ({time.monotonic() - started:.0f} s)")
    return output


def _fill_in(
    config: SampleConfig,
    checkpoint: Checkpoint,
    asked: ConditionRequest,
    folder: Path,
    output: Path,
    say: Callable[[str], None],
) -> str:
    cells, name = _cells(config, checkpoint, say)
    names = tuple(checkpoint.model.config.condition_levels or {})
    with open_counts(cells, config.layer, name, obs_columns=names) as source:
        inpainting = Inpainting.of(
            checkpoint,
            source,
            Hiding.of(config.mask_ratio, config.impute_zeros, config.seed),
            asked=asked,
            sampling=config.sampling,
            answer=config.answer,
            passes=config.passes,
            say=say,
        )
        about = inpainting.about()
        seen = "" if inpainting.seen_under is None else inpainting.seen_under.digest()
        told = about | {"told": inpainting.conditions.digest() + seen}
        digest = _digest(checkpoint, folder, told, inpainting.size.cells, cells)
        with _kept(output, digest, len(source.var), say) as finished:
            with inpainting.progress(show=True) as progress:
                for portion in inpainting.portions(progress, finished.num_cells):
                    finished.add(portion)
            found = inpainting.found(finished.totals, say)
            write_filled(
                cells, output, finished, config.answer, layer=config.layer, is_modelled=inpainting.is_modelled,
                uns=about | found,
            )  # fmt: skip
    *first, last = config.answer.layers
    return f"layers {', '.join(first)} and {last} of {inpainting.num_cells:,} cells"


def _generate(
    config: SampleConfig,
    checkpoint: Checkpoint,
    asked: ConditionRequest,
    folder: Path,
    output: Path,
    say: Callable[[str], None],
) -> str:
    taken = None if config.conditions_from is None else read_obs(config.conditions_from)
    num_cells = len(taken) if config.num_cells is None else config.num_cells
    generation = Generation.of(
        checkpoint,
        num_cells,
        asked=asked,
        conditions_from=taken,
        genes=None if config.genes is None else genes_in_file(config.genes, "--genes"),
        seed=config.seed,
        sampling=config.sampling,
        passes=config.passes,
        say=say,
    )
    about, symbols = generation.about(), generation.symbols
    told = about | {"told": generation.conditions.digest()}
    digest = _digest(checkpoint, folder, told, generation.size.cells, (num_cells, symbols))
    with _kept(output, digest, len(symbols), say) as finished:
        with generation.progress(show=True) as progress:
            for portion in generation.portions(progress, finished.num_cells):
                finished.add(portion)
        columns = tuple(generation.conditions.labels)
        with H5adWriter(output, columns, generation.var, symbols, {"mdsc": about}) as writer:
            first = 0
            for portion in finished:
                counts = portion.layers["X"]
                names = generation.names(first, counts.shape[0])
                writer.write(counts, generation.labels(slice(first, first + len(names))), names)
                first += len(names)
    return f"{num_cells:,} new cells x {len(symbols):,} genes"


@contextmanager
def _kept(output: Path, digest: str, num_columns: int, say: Callable[[str], None]) -> Iterator[FinishedCells]:
    """Alone with the output; what fails to be written is told, and what is done is kept."""
    if output.exists():
        say(f"{output} is there already: it will be replaced when all cells are done")
    try:
        with alone(output), FinishedCells(output, digest, num_columns, say) as finished:
            yield finished
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written: {error.strerror or first_line(error)}.\n"
            "Mend that and give the same command again: it goes on after the cells that are done."
        ) from error
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory: {first_line(error)}.\nGive a smaller --max-memory, --genes-per-pass or --batch-size."
        ) from error


def _digest(checkpoint: Checkpoint, folder: Path, about: Mapping[str, Any], size: int, cells: Any) -> str:
    """Of all that the numbers depend on. A file of cells is known by its size and its times."""
    if isinstance(cells, Path):
        found = cells.stat()
        cells = (str(cells.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    elif not isinstance(cells, tuple):
        cells = (cells.obs_names.tolist(), int(cells.X.sum()))
    device = checkpoint.model.device.type
    task = {"about": about, "cells": cells, "size": size, "device": device, "torch": torch.__version__}
    return task_digest(task | {"weights": weights_digest(folder), "tokenizer": str(checkpoint.tokenizer)})


def _check(config: SampleConfig) -> None:
    """What can be told before anything is read."""
    if config.output is not None:
        check_output(config.output, config.input)
    if config.prediction != PredictionOptions():
        raise UserError("--edit-fraction and the like are for --perturbation: give it, or leave them out.")
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
        ("--seen-under", config.seen_under or None),
        ("--quantiles", config.answer.quantiles),
        ("--num-draws", None if config.answer.num_draws == 1 else config.answer.num_draws),
    ):
        if value is not None:
            raise UserError(f"{flag} is for filling in cells, and --num-cells generates new ones: give one of the two.")
    if config.conditions_from is not None and not config.conditions_from.is_file():
        raise UserError(f"--conditions-from: there is no file {config.conditions_from}.")


def _asked(config: SampleConfig) -> ConditionRequest:
    files = feature_files(config.condition_features, "--condition-features")
    seen_under = condition_pairs(config.seen_under, "--seen-under")
    return ConditionRequest(condition_pairs(chain(*config.condition)), files, config.guidance, seen_under)


def _cells(config: SampleConfig, checkpoint: Checkpoint, say: Callable[[str], None]) -> tuple["Path | AnnData", str]:
    """What to fill in, and what messages call it."""
    if config.input is not None:
        return config.input, str(config.input)
    if config.layer is not None:
        raise UserError("--layer is a place in the --input; the held-out cells of a run have none.")
    return held_out_cells(checkpoint, say)
