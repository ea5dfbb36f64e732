"""What a person sees of work on many cells: a bar with cells/s and time left; piped, plain lines where asked for."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between lines where the output is no terminal.
QUIET = 10.0


def say_nothing(text: str) -> None:
    """For who is told nothing."""


def lines_on_console() -> Callable[[str], None]:
    """Prints what it is given, a line at a time: names of files and genes are neither folded nor taken for markup."""
    return Console(soft_wrap=True, highlight=False, markup=False).print


class CellProgress:
    """A context manager. `show=False` shows nothing; `lines` says whether an output that is no terminal gets lines."""

    def __init__(
        self, what: str, num_cells: int, *, show: bool, lines: bool = False, console: Console | None = None
    ) -> None:
        self.what, self.num_cells = what, num_cells
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._says_lines = show and lines and not self.console.is_terminal
        self._shows = show and (lines or self.console.is_terminal)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not (show and self.console.is_terminal),
        )
        self._task = self._bar.add_task(what, total=num_cells, speed="")
        self._first: tuple[float, float] | None = None
        self._last_line = time.monotonic()

    def done(self, num_cells: float | int) -> None:
        """So many cells are done in all. Speed is counted from the first call, which may tell of an earlier run's."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, num_cells)
        seconds, cells = now - self._first[0], num_cells - self._first[1]
        per_second = cells / seconds if seconds > 0 else 0
        speed = f"{per_second:,.{0 if per_second >= 10 else 2}f} cells/s" if per_second else ""
        self._bar.update(self._task, completed=int(num_cells), speed=speed)
        if self._says_lines and speed and now - self._last_line >= QUIET:
            self._last_line = now
            left = timedelta(seconds=round((self.num_cells - num_cells) * seconds / cells))
            self.say(f"{self.what} {int(num_cells):,}/{self.num_cells:,} cells  {speed}  {left} left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shows:
            self.console.print(text, markup=False)

    def __enter__(self) -> "CellProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
