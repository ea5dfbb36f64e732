"""A checkpoint folder: written so that a kill at any moment leaves a whole one, read so that no weight is ever random.

    config.json, model.safetensors    the network and its averaged weights: all that `from_pretrained` needs
    genes.parquet                     the gene vocabulary, with statistics of the training cells
    tokenizer.json                    how counts become tokens
    training.yaml                     the run's options
    quarantined.json                  the corrupt row groups that the run has replaced, where there were any

It is the top level of a run's folder, beside metrics.jsonl and loss.png, and the folder that is pushed to a hub.
"""

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from mdsc.config.schema import TrainConfig
from mdsc.config.yaml_flags import dump, parse
from mdsc.data import quarantine
from mdsc.data.genes import GeneStatistics, GeneVocabulary
from mdsc.data.quarantine import Quarantined
from mdsc.data.tokenizer_file import load_tokenizer, save_tokenizer
from mdsc.data.tokenizers import Tokenizer
from mdsc.errors import UserError
from mdsc.hub.download import download
from mdsc.hub.repository import as_repository, name_of_cached
from mdsc.model.modeling import MdscModel
from mdsc.perturbation.configuration import MODEL_TYPE
from mdsc.perturbation.head import GaussianHead

WEIGHTS = "model.safetensors"
TRAINING = "training.yaml"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model and what is needed to use it."""

    model: MdscModel | GaussianHead
    """On the CPU, float32, in evaluation mode."""
    tokenizer: Tokenizer | None
    """None for a Gaussian head, which reads no tokens."""
    vocabulary: GeneVocabulary
    statistics: GeneStatistics
    config: TrainConfig | None
    """The options of the run that trained it; None where training.yaml was not kept."""
    quarantined: tuple[Quarantined, ...] = ()
    """Corrupt row groups that the run has replaced."""


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint into a run's folder, whose other files stay. For one process only.

    The new files are written beside and then moved, the weights last. Within a run they alone change, and are replaced
    at once; where another run's vocabulary or options stand, its weights go first, so that no mixture can be loaded.
    The record of corrupt row groups grows within a run: older weights may have a newer one.
    """
    folder = Path(folder)
    beside = folder / ".saving"
    shutil.rmtree(beside, ignore_errors=True)  # what a killed run has left
    beside.mkdir(parents=True)
    try:
        with _quiet_transformers():
            checkpoint.model.save_pretrained(beside)
        # safetensors makes a file that its owner alone can read.
        shutil.copymode(beside / "config.json", beside / WEIGHTS)
        checkpoint.vocabulary.save(beside, checkpoint.statistics)
        if checkpoint.tokenizer is not None:
            save_tokenizer(checkpoint.tokenizer, beside)
        if checkpoint.config is not None:
            (beside / TRAINING).write_text(dump(checkpoint.config), encoding="utf-8")
        (beside / quarantine.FILE_NAME).write_text(quarantine.to_json(checkpoint.quarantined), encoding="utf-8")
        changing = (quarantine.FILE_NAME, WEIGHTS)
        changed = [path for path in sorted(beside.iterdir()) if path.name not in changing and not _same(path, folder)]
        if changed:
            (folder / WEIGHTS).unlink(missing_ok=True)
        for path in changed:
            os.replace(path, folder / path.name)
        if checkpoint.quarantined:
            os.replace(beside / quarantine.FILE_NAME, folder / quarantine.FILE_NAME)
        else:
            (folder / quarantine.FILE_NAME).unlink(missing_ok=True)
        os.replace(beside / WEIGHTS, folder / WEIGHTS)
    finally:
        shutil.rmtree(beside)


def checkpoint_folder(checkpoint: str | Path, flag: str = "--checkpoint") -> Path:
    """A folder of this name if there is one, else what the hub has as `user/name[@revision]`, downloaded."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    repository = as_repository(str(checkpoint))
    if repository is None:
        raise UserError(f"{flag}: there is no folder {folder}.")
    try:
        return download(repository)
    except UserError as error:
        raise UserError(f"{flag}: there is no folder {folder} here, and on the hub:\n{error}") from error


def checkpoint_name(folder: Path) -> str:
    """What messages and results call a checkpoint: its folder, or `user/name@commit` where it is of the hub."""
    return name_of_cached(folder) or str(folder)


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights, in hex: what the hub shows beside them too."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Read a folder, or `user/name` of the hub; UserError where a part is missing, cut off or does not fit."""
    folder = checkpoint_folder(checkpoint)
    _require_model(folder)
    vocabulary, statistics = GeneVocabulary.load(folder), GeneStatistics.load(folder)
    model = load_model(folder)
    tokenizer = None if isinstance(model, GaussianHead) else load_tokenizer(folder)
    if model.config.num_genes != len(vocabulary):
        raise UserError(
            f"{folder}: the model has {model.config.num_genes} genes, but genes.parquet has {len(vocabulary)}: these "
            "files are of different checkpoints."
        )
    if tokenizer is not None and model.config.num_tokens != tokenizer.num_tokens:
        raise UserError(
            f"{folder}: the model has {model.config.num_tokens} tokens, but tokenizer.json has {tokenizer.num_tokens}: "
            "these files are of different checkpoints."
        )
    training = folder / TRAINING
    config = parse(TrainConfig, ["--config", str(training)]) if training.is_file() else None
    record = folder / quarantine.FILE_NAME
    quarantined = quarantine.from_json(record.read_bytes(), str(record)) if record.is_file() else ()
    return Checkpoint(model, tokenizer, vocabulary, statistics, config, quarantined)


def load_masked(checkpoint: str | Path) -> Checkpoint:
    """As `load_checkpoint`; UserError where it is no masked model's."""
    loaded = load_checkpoint(checkpoint)
    if isinstance(loaded.model, GaussianHead):
        raise UserError(
            f"--checkpoint {checkpoint} is a Gaussian head, which predicts perturbed cells (sample.py --perturbation) "
            "and has no likelihood of counts: give a masked model's."
        )
    return loaded


def model_class(folder: Path) -> type[MdscModel] | type[GaussianHead]:
    """What config.json says that the model is."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None  # whoever reads it will say what is wrong
    return GaussianHead if kind == MODEL_TYPE else MdscModel


def load_model(folder: str | Path) -> MdscModel | GaussianHead:
    """Read config.json and model.safetensors.

    transformers fills what a weights file lacks with random numbers and a log message; here that is an error. Nothing
    but safetensors is read, so that nothing is unpickled.
    """
    folder = Path(folder)
    _require_model(folder)
    try:
        with _quiet_transformers():
            model, found = model_class(folder).from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are in `found`, by name
                use_safetensors=True,
                local_files_only=True,
                dtype="float32",
            )
    except Exception as error:  # a damaged file raises whatever the library under it does
        raise UserError(
            f"{folder}: config.json or {WEIGHTS} cannot be read: {_first_line(error)}.\nCopy the checkpoint again."
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found.get(what):
            names = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in found[what])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{folder / WEIGHTS} does not fit config.json: {what.replace('_', ' ')} {', '.join(names[:3])}{more}.\n"
                "Copy it again if its files are of different models; train anew what an older mdsc has trained."
            )
    for name, values in model.state_dict().items():
        if not values.isfinite().all():
            raise UserError(
                f"{folder / WEIGHTS} is damaged: {name} is not finite throughout.\nCopy the checkpoint again."
            )
    return model.eval()


def newest_run(folder: str | Path = "runs") -> Path:
    """The run in `folder` whose weights were saved last."""
    weights = sorted(Path(folder).glob(f"*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime)
    if not weights:
        raise UserError(f"there is no checkpoint in {folder}/: train one (`mdsc train`), or give --checkpoint.")
    return weights[-1].parent


def given_or_newest(checkpoint: str | None, say: Callable[[str], None]) -> Path:
    """The folder of `--checkpoint`; where it is not given, that of the newest run, and `say` is told so."""
    if checkpoint is not None:
        return checkpoint_folder(checkpoint)
    folder = newest_run()
    say(f"--checkpoint is not given: taking {folder}, the newest run")
    return folder


def _require_model(folder: Path) -> None:
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: it is not a checkpoint, or its training has not saved one yet "
                "(--train.save-every)."
            )


def _same(path: Path, folder: Path) -> bool:
    other = folder / path.name
    return other.is_file() and filecmp.cmp(path, other, shallow=False)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars over what a run prints, and no load reports: what they tell is an error here."""
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
