"""What a person sees of a run: a bar with step, loss, validation NLL, cells/s and time left; piped, plain lines."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mdsc.progress import QUIET


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
        self._has_news = self._is_validated = False
        self._last_line, self._last_step = time.monotonic(), 0

    def starts_at(self, step: int) -> None:
        """An earlier part of the run has done `step` steps: the time that is left is not guessed from these."""
        self._last_line, self._last_step = time.monotonic(), step

    def measured(self, values: dict[str, float | int]) -> None:
        """New averages: `loss`, `cells_per_second` and `model_flops_per_second` are shown, and `mfu` if it is there."""
        self._loss = f"loss {values['loss']:.4f}"
        self._speed = f"{values['cells_per_second']:,.0f} cells/s"
        if values["model_flops_per_second"]:
            flops = values["model_flops_per_second"]
            self._speed += f"  {flops / 1e12:,.3g} TFLOP/s" if flops >= 1e11 else f"  {flops / 1e9:,.3g} GFLOP/s"
        if "mfu" in values:
            self._speed += f"  MFU {values['mfu']:.1%}"
        self._has_news = True

    def validated(self, name: str, score: float) -> None:
        """A new score, such as `validation_nll`."""
        self._validation = f"{name.replace('_', ' ')} {score:.4f}"
        self._is_validated = True

    def done(self, step: int) -> None:
        """Show that `step` steps are done, and what was told since."""
        numbers = "  ".join(filter(None, (self._loss, self._validation, self._speed)))
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif self._is_validated or (self._has_news and time.monotonic() - self._last_line >= QUIET):
            now, steps = time.monotonic(), step - self._last_step
            left = (now - self._last_line) / steps * (self.max_steps - step) if steps else 0
            line = f"step {step:,}/{self.max_steps:,}  {numbers}"
            self.say(f"{line}  {timedelta(seconds=round(left))} left" if left else line)
            self._last_line, self._last_step = now, step
            self._has_news = self._is_validated = False

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def __enter__(self) -> "RunProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
