"""SIGTERM and SIGINT ask a run to stop: it finishes its step, saves and ends. A second one ends it at once.

A launcher that dies counts as SIGTERM. `accelerate launch` does not pass signals on, and torch's launcher gives each
process a session of its own, so that a killed launcher would leave processes behind that nobody sees.
"""

import os
import signal
import time
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from types import FrameType, TracebackType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHERS = {
    "accelerate", "accelerate-launch", "torchrun", "torch.distributed.run", "torch.distributed.launch",
    "accelerate.commands.accelerate_cli", "accelerate.commands.launch",
}  # fmt: skip
ECHO = 3.0
"""Seconds in which a launcher passes on what Ctrl-C or a scheduler has sent to all processes: no second signal."""
WATCH = 0.5
"""Seconds between looks at the launcher."""


class StopSignals:
    """A context manager; `number` is the signal that came, or 0. Handlers stand in the main thread alone."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._launchers = _launchers()
        self._ended = Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if current_thread() is main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        if self._launchers:
            Thread(target=self._watch, name="mdsc-launcher-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif not self._launchers or time.monotonic() - self._since > ECHO:
            os._exit(128 + number)  # states are whole at any moment

    def _watch(self) -> None:
        while not self._ended.wait(WATCH):
            if not all(launcher.is_running() for launcher in self._launchers):
                self.number = self.number or int(signal.SIGTERM)
                return


def _launchers() -> list[psutil.Process]:
    """The processes above this one that launch others, the nearest first."""
    found = []
    for process in psutil.Process().parents():
        try:
            command = process.cmdline()
        except psutil.Error:
            break
        # A shell that was given the whole line as one argument is none: it may end before its command.
        if LAUNCHERS.isdisjoint(Path(argument).name for argument in command):
            break
        found.append(process)
    return found
