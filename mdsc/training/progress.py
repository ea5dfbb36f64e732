"""What a person sees of a run: a bar with step, loss, validation NLL, cells/s and time left; piped, plain lines."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between lines where the output is no terminal.
QUIET = 10.0


class RunProgress:
    """A context manager; `show=False` (all but the main process) prints nothing."""

    def __init__(self, max_steps: int, *, show: bool = True, console: Console | None = None):
        self.max_steps = max_steps
        self.console = console or Console(quiet=not show, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        if self.console.is_terminal and show:
            self._bar = Progress(
                TextColumn("step {task.completed:,}/{task.total:,}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=max_steps, numbers="")
        self._loss = self._validation = self._speed = ""
        self._started = self._last_line = time.monotonic()

    def step(self, step: int) -> None:
        """A step is done; `step` of them so far."""
        if self._bar is not None:
            numbers = "  ".join(filter(None, (self._loss, self._validation, self._speed)))
            self._bar.update(self._task, completed=step, numbers=numbers)

    def measured(self, step: int, values: dict[str, float | int]) -> None:
        """New averages since the last ones: loss and cells_per_second are shown."""
        self._loss = f"loss {values['loss']:.4f}"
        self._speed = f"{values['cells_per_second']:,.0f} cells/s"
        if self._bar is None and time.monotonic() - self._last_line >= QUIET:
            self._line(step)

    def validated(self, step: int, values: dict[str, float | int]) -> None:
        """New validation scores."""
        self._validation = f"validation nll {values['validation_nll']:.4f}"
        if self._bar is None:
            self._line(step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def _line(self, step: int) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._started
        left = f"{timedelta(seconds=round(elapsed / step * (self.max_steps - step)))} left" if step else ""
        parts = (f"step {step:,}/{self.max_steps:,}", self._loss, self._validation, self._speed, left)
        self.say("  ".join(filter(None, parts)))

    def __enter__(self) -> "RunProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
