"""Where a run goes on from: the newest state that is whole, with the same options and data."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator

from mdsc.checkpoint import TRAINING
from mdsc.config.schema import TrainConfig
from mdsc.data.quarantine import Quarantined, from_json
from mdsc.data.tokenizer_file import FILE_NAME as TOKENIZER
from mdsc.data.tokenizer_file import load_tokenizer
from mdsc.data.tokenizers import Tokenizer
from mdsc.errors import UserError
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.perturbation.configuration import GaussianHeadConfig
from mdsc.perturbation.head import GaussianHead
from mdsc.training.process_talk import text_of_main
from mdsc.training.state_files import FACTS, DamagedState, read_state, saved_steps, state_folder

AUTO = "auto"
MAY_CHANGE = {
    "output_dir", "resume",
    "data.dir", "data.cache_dir", "data.cache_bytes", "data.verify", "data.workers", "data.prefetch", "data.on_corrupt",
    "model.attention",
    "train.max_steps", "train.batch_size", "train.log_every", "train.validate_every", "train.save_every",
    "train.keep_last", "train.ema_device", "train.gradient_checkpointing", "train.compile",
    "tracking.wandb", "tracking.project", "tracking.tensorboard", "tracking.spike_threshold",
    "hub.repo", "hub.every", "hub.private", "hub.license",
}  # fmt: skip
"""What changes no token, and numbers no more than rounding does, or only what is still to come. The data may move: its
digest must stay."""
SMALL_FILES = ("config.json", TOKENIZER)
"""What a model is built from. A Gaussian head has no tokenizer."""


@dataclass(frozen=True)
class SavedState:
    """A training state, without its tensors. Every process has one; the folder may be the main process's alone."""

    folder: Path
    facts: dict[str, Any]
    files: dict[str, str]
    """Text of the files that a model is built from."""

    @property
    def run(self) -> Path:
        return self.folder.parent.parent

    @property
    def step(self) -> int:
        return self.facts["step"]

    @cached_property
    def quarantined(self) -> tuple[Quarantined, ...]:
        return from_json(json.dumps(self.facts["quarantined"]), str(self.folder / FACTS))

    def to_text(self) -> str:
        return json.dumps({"folder": str(self.folder), "facts": self.facts, "files": self.files})

    @classmethod
    def of_text(cls, text: str) -> "SavedState":
        content = json.loads(text)
        return cls(Path(content["folder"]), content["facts"], content["files"])

    def build(self, attention: str) -> tuple[MdscModel | GaussianHead, Tokenizer | None]:
        """The model, its weights still to come, and the tokenizer with its fitted values, if it has one.

        Nothing is fitted anew, as on another machine that could give other digits.
        """
        with TemporaryDirectory() as folder:
            for name, text in self.files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            if TOKENIZER not in self.files:
                return GaussianHead(GaussianHeadConfig.from_pretrained(folder)), None
            config = MdscConfig.from_pretrained(folder, attn_implementation=attention)
            return MdscModel(config), load_tokenizer(folder)

    def require_same(self, config: TrainConfig, digest: str) -> None:
        """UserError where the options or the data are not those of the state."""
        if changed := changed_options(self.facts["options"], config):
            (name, saved, given), *others = changed
            flag = "--" + name.replace("_", "-")
            too = f" (and {', '.join('--' + other[0].replace('_', '-') for other in others)})" if others else ""
            raise UserError(
                f"{flag} is {_told(given)}, but it was {_told(saved)} in the run that is to be resumed, {self.folder}"
                f"{too}.\nGive {flag} {_told(saved)}, or all its options by --config {self.run / TRAINING}; or start "
                "anew in another --output-dir."
            )
        if self.facts["data"] != digest:
            raise UserError(
                f"--data.dir {config.data.dir} has other cells than those of the run that is to be resumed, "
                f"{self.folder} (manifest {digest[:12]}, not {self.facts['data'][:12]}).\n"
                "Give the shards that it was started on, or start anew in another --output-dir."
            )


def state_to_resume(config: TrainConfig, accelerator: Accelerator, say: Callable[[str], None]) -> SavedState | None:
    """The state that --resume asks for, found by the main process and given to all; None to start anew."""
    if config.resume is None:
        return None

    def found() -> str | None:
        state = find_state(config, say)
        return state and state.to_text()

    text = text_of_main(accelerator, found)
    return None if text is None else SavedState.of_text(text)


def find_state(config: TrainConfig, say: Callable[[str], None]) -> SavedState | None:
    """As `state_to_resume`, for the main process. `say` is told what is damaged."""
    if config.resume != AUTO:
        given = Path(config.resume)
        if (given / FACTS).is_file():
            return _open(given)
        if not saved_steps(given):
            raise UserError(f"--resume {given} is neither a run's folder with states nor a state; give one, or auto.")
    run = Path(config.output_dir) if config.resume == AUTO else given
    steps = saved_steps(run)
    for folder in (state_folder(run, step) for step in reversed(steps)):
        try:
            state = _open(folder)
        except DamagedState as error:
            say(f"warning: {folder} is damaged ({error}): the state before it is taken")
            continue
        return state
    if steps:
        raise UserError(f"--resume: none of the {len(steps)} states in {run} is whole: give another --output-dir.")
    say(f"--resume auto: {run} has no state yet, starting anew")
    return None


def changed_options(saved: dict[str, Any], config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """(name, saved value, given value) of every option that must not change on the way and has.

    A state of an older version lacks the newer options: these had their defaults.
    """
    before, now = _flat_defaults() | _flat(saved), _flat(json.loads(json.dumps(asdict(config))))
    return [(name, before[name], now[name]) for name in now if name not in MAY_CHANGE and before[name] != now[name]]


def _open(folder: Path) -> SavedState:
    facts = read_state(folder)
    files = {name: (folder / name).read_text(encoding="utf-8") for name in SMALL_FILES if (folder / name).is_file()}
    return SavedState(folder.resolve(), facts, files)


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _flat_defaults() -> dict[str, Any]:
    return _flat(json.loads(json.dumps(asdict(TrainConfig()))))


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
