"""Writes states in a thread while training goes on: one at a time, and what goes wrong there reaches the run."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import TracebackType

from safetensors import SafetensorError

from mdsc.errors import UserError
from mdsc.training.state_files import saved_steps


class BackgroundWriter:
    """`submit` starts a job in a thread. A job that fails is told by the next `submit` or `wait`, as a UserError."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` in the background, after the last one has ended well."""
        self.wait()
        # No daemon: Python must not end in the middle of a write that nothing has cut short.
        self._thread = Thread(target=self._run, args=(job,), name="mdsc-save")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written; raise what the last job has raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError | SafetensorError):  # safetensors wraps what the disk says
            raise cannot_write(self._folder, error) from error
        if error is not None:
            raise error

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error


def cannot_write(folder: Path, error: Exception) -> UserError:
    """What to do about a disk that is full, or a folder that is read-only."""
    why = getattr(error, "strerror", None) or str(error)
    if saved_steps(folder):
        return UserError(
            f"--output-dir {folder} cannot be written: {why}. States that were saved before are whole.\n"
            "Make room or make it writable, and go on with --resume auto."
        )
    return UserError(
        f"--output-dir {folder} cannot be written: {why}.\nMake room or make it writable, or give another folder."
    )
