"""One process at a time writes a run's folder: a killed run may still be ending while its successor starts."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mdsc.errors import UserError

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None

PATIENCE = 60.0
"""Seconds; a run that was asked to stop has 30."""


class RunLock:
    """A context manager that holds the folder from `take` on; one that does not exist yet cannot be held.

    The kernel takes the lock from a process that dies. Where the file system knows no locks, there is none.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], patience: float = PATIENCE):
        self._folder = folder
        self._say = say
        self._patience = patience
        self._handle: int | None = None

    def take(self) -> None:
        """UserError where another process still has the folder after `patience` seconds."""
        if fcntl is None or self._handle is not None or not self._folder.is_dir():
            return
        try:
            self._handle = os.open(self._folder, os.O_RDONLY)
            self._wait()
        except OSError:
            return

    def _wait(self) -> None:
        start, has_told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() - start > self._patience:
                    raise UserError(
                        f"--output-dir {self._folder} is being written by another process: end that one, or give "
                        "another folder."
                    ) from None
            if not has_told:
                self._say(f"another process still writes {self._folder}: waiting {self._patience:.0f} s at most")
                has_told = True
            time.sleep(0.2)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
