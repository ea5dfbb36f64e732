"""Pushes of a run's checkpoints while it goes on: one at a time, the newest wins, and no failure reaches the run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType

import mdsc
from mdsc.config.schema import HubConfig
from mdsc.hub.failures import LOG_IN, without_secrets
from mdsc.publish.card_file import write_card
from mdsc.publish.snapshot import Snapshot, take_snapshot

FOLDER = ".hub"
PAUSES = (30, 60, 120, 240, 480, 900)
"""Seconds from one failed attempt to the next, unless a newer checkpoint comes before; the last one repeats."""
END_PAUSES = (5, 20)
"""The same once the run has ended, which then gives up."""
MOST_SECONDS, FEWEST_BYTES_PER_SECOND = 600, 500_000
"""An attempt that takes longer than that many seconds, and a second for that many bytes, is broken off."""


class Uploads:
    """Give it each saved checkpoint, on the main process; leave it as a context manager, last of all.

    The upload itself runs in a process of its own (`mdsc.hub.upload_process`), watched by a thread here. A snapshot is
    taken before `saved` returns, so that it is of one step.
    """

    def __init__(
        self,
        config: HubConfig,
        run: Path,
        say: Callable[[str], None],
        *,
        pauses: tuple[float | int, ...] = PAUSES,
        end_pauses: tuple[float | int, ...] = END_PAUSES,
        most_seconds: float | int = MOST_SECONDS,
    ):
        """Begins at once, by making the repository, so that a wrong token is told early."""
        assert config.repo is not None
        self._config = config
        self._repo = config.repo
        self._run = run
        self._say = say
        self._pauses, self._end_pauses, self._most_seconds = pauses, end_pauses, most_seconds
        self._changed = Condition()
        self._waiting: Snapshot | None = None
        self._process: subprocess.Popen | None = None
        self._last_step = self._number = 0
        self._not_before = 0.0
        self._failures = 0
        self._told = ""
        self._is_closing = self._is_stopped = False
        self._thread = Thread(target=self._work, name="hub uploads", daemon=True)

    def __enter__(self) -> "Uploads":
        from huggingface_hub import get_token

        if not get_token():
            self._warn(f"there is no token of the hub on this machine ({LOG_IN}); the run goes on")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(patience=None if kind is None else 0)

    def saved(self, step: int, *, is_last: bool = False) -> None:
        """A checkpoint of `step` stands in the run's folder, and is pushed if it is due. The last one always is."""
        if not is_last and step - self._last_step < (self._config.every or 1):
            return
        if not self._number:
            shutil.rmtree(self._run / FOLDER, ignore_errors=True)  # what a killed run has left
        self._number += 1  # a folder may be in use by the upload that runs
        try:
            snapshot = take_snapshot(self._run, self._run / FOLDER / str(self._number), step, with_picture=is_last)
        except Exception as error:  # a full disk, say
            self._warn(f"step {step:,} was not put by for pushing ({_first_line(error)}); the run goes on")
            return
        with self._changed:
            self._last_step = step
            if self._waiting is not None:
                self._waiting.discard()
            self._waiting, self._not_before = snapshot, 0.0
            self._changed.notify_all()

    def close(self, patience: float | int | None = None) -> None:
        """Wait, `patience` seconds at most, until the newest snapshot is pushed or given up; then end the upload.

        Leaving the context does it without a limit, or after an exception at once; here it may be done before.
        """
        if self._is_stopped:
            return
        try:
            with self._changed:
                self._is_closing, self._failures, self._not_before = True, 0, 0.0
                self._changed.notify_all()
            if self._thread.is_alive():
                self._thread.join(patience)
        finally:
            with self._changed:
                self._is_stopped = True
                if self._process is not None:
                    self._process.kill()
                self._changed.notify_all()
            if self._thread.is_alive():
                self._thread.join(10)
            if self._waiting is not None:
                self._warn(
                    f"{self._waiting.label} is not on the hub; this pushes it:\n"
                    f"  mdsc push --checkpoint {self._run} --repo {self._repo}"
                )
            shutil.rmtree(self._run / FOLDER, ignore_errors=True)

    def _work(self) -> None:
        self._finished(None, self._attempt(None))
        while (snapshot := self._next()) is not None:
            self._finished(snapshot, self._attempt(snapshot))

    def _next(self) -> Snapshot | None:
        """The snapshot to push, as soon as it should be; None at the end."""
        with self._changed:
            while not self._is_stopped:
                wait = self._not_before - time.monotonic()
                if self._waiting is None:
                    if self._is_closing:
                        return None
                    self._changed.wait()
                elif self._is_closing and self._failures > len(self._end_pauses):
                    return None
                elif wait > 0:
                    self._changed.wait(wait)
                else:
                    snapshot, self._waiting = self._waiting, None
                    return snapshot
            return None

    def _attempt(self, snapshot: Snapshot | None) -> dict:
        """What the process of the upload answers; None makes the repository alone."""
        job = {"parent": os.getpid(), "repo": self._repo, "private": self._config.private, "folder": None}
        seconds = self._most_seconds
        try:
            if snapshot is not None:
                write_card(snapshot, self._run, self._repo, self._config.license)
                job |= {"folder": str(snapshot.folder), "message": f"Step {snapshot.step:,}"}
                seconds += snapshot.bytes / FEWEST_BYTES_PER_SECOND
            return self._answer(json.dumps(job), seconds)
        except Exception as error:  # nothing of this may end the thread
            return {"error": _first_line(error)}

    def _answer(self, job: str, seconds: float | int) -> dict:
        root = str(Path(mdsc.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with self._changed:
            if self._is_stopped:
                return {"error": "the run was ended"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mdsc.hub.upload_process", job],
                env=os.environ | {"PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the run, which may want to save
            )
        try:
            lines = self._process.communicate(timeout=seconds)[0].splitlines()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return {"error": f"the hub took longer than {seconds:.0f} s"}
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            last = lines[-1] if lines else "no output"
            return {"error": f"the upload ended with code {self._process.returncode} ({last})"}

    def _finished(self, snapshot: Snapshot | None, answer: dict) -> None:
        with self._changed:
            self._process = None
            if (reason := answer.get("error")) is None:
                self._failures, self._told = 0, ""
                if snapshot is not None:
                    snapshot.discard()
                    self._say(f"pushed {snapshot.label} to {answer['url']}")
                elif self._config.private and not answer["is_private"]:
                    self._warn(f"{answer['url']} is PUBLIC, and stays so: --hub.private is for new repositories")
                return
            self._failures += 1
            if snapshot is not None:
                pauses = self._end_pauses if self._is_closing else self._pauses
                self._not_before = time.monotonic() + pauses[min(self._failures, len(pauses)) - 1]
                if self._waiting is None:
                    self._waiting = snapshot
                else:
                    snapshot.discard()
                    self._not_before = 0.0
            if reason != self._told and not self._is_stopped:
                self._told = reason
                what = "no checkpoint can be pushed" if snapshot is None else f"{snapshot.label} was not pushed"
                self._warn(f"{what}: {reason}; it is tried again later, and the run goes on")

    def _warn(self, text: str) -> None:
        self._say(f"warning: hub: {without_secrets(text)}")


def _first_line(error: Exception) -> str:
    return without_secrets((str(error).strip() or type(error).__name__).splitlines()[0])
