"""Saves a run in the background: a state that it can be gone on from, then the checkpoint at the top of its folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

import mdsc
from mdsc.checkpoint import Checkpoint, save_checkpoint
from mdsc.data.quarantine import Quarantined, to_json
from mdsc.data.shards import ShardFolder
from mdsc.publish.uploads import Uploads
from mdsc.training.background_writer import BackgroundWriter
from mdsc.training.process_talk import on_main
from mdsc.training.state_files import TENSORS, remove_old_states, write_state
from mdsc.training.tracking import Tracker
from mdsc.training.trainer import Trainer
from mdsc.training.trainer_state import HostCopy, facts_of


class RunSaver:
    """`save` is for all processes; the main one writes."""

    def __init__(
        self,
        trainer: Trainer,
        accelerator: Accelerator,
        folder: ShardFolder,
        writer: BackgroundWriter,
        tracker: Tracker | None,
        uploads: Uploads | None = None,
    ):
        self._trainer = trainer
        self._accelerator = accelerator
        self._folder = folder
        self._writer = writer
        self._tracker = tracker
        self._uploads = uploads
        self._copy = HostCopy()

    def save(self, done: int, quarantined: Sequence[Quarantined]) -> None:
        """Save what `done` steps have made. Training goes on as soon as all is copied; `finish` waits for the disk.

        What the main process cannot do ends all of them, before they need each other to put the tensors together.
        """
        on_main(self._accelerator, self._writer.wait)  # it may still be reading the copy
        self._copy.take(self._trainer)
        on_main(self._accelerator, lambda: self._submit(done, tuple(quarantined)))

    def finish(self) -> None:
        """Return when all that was saved is on the disk."""
        on_main(self._accelerator, self._writer.wait)

    def _submit(self, done: int, quarantined: tuple[Quarantined, ...]) -> None:
        trainer = self._trainer
        if self._tracker is not None:
            self._tracker.to_disk()
        config = trainer.config
        facts = self._facts(quarantined)
        # How a run was started is no part of what it is: a resumed run leaves the same files.
        kept = replace(config, resume=None)
        folder = self._folder
        parts = Checkpoint(
            self._copy.model, trainer.task.tokenizer, folder.vocabulary, folder.statistics, kept, quarantined
        )
        tensors, run = self._copy.tensors, Path(config.output_dir)

        def fill(state: Path) -> None:
            save_checkpoint(state, parts)
            save_file(tensors, state / TENSORS)

        def write() -> None:
            write_state(run, done, fill, facts)
            save_checkpoint(run, parts)
            if self._uploads is not None and done < config.train.max_steps:  # the last one is pushed with its picture
                self._uploads.saved(done)
            remove_old_states(run, done, config.train.keep_last)

        self._writer.submit(write)

    def _facts(self, quarantined: tuple[Quarantined, ...]) -> dict[str, Any]:
        return {
            "mdsc": mdsc.__version__,
            "processes": self._accelerator.num_processes,
            "options": asdict(self._trainer.config),
            "data": self._folder.digest,
            "quarantined": json.loads(to_json(quarantined)),
            "wandb_run": None if self._tracker is None else self._tracker.wandb_run,
            **facts_of(self._trainer),
        }
