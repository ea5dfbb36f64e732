"""A bar of the cells that are done, with the time left, where a person is watching."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mdsc.diffusion.evidence import Predict


class SamplingProgress:
    """A context manager. `show=False`, or an output that is no terminal, shows nothing."""

    def __init__(self, what: str, num_cells: int, passes_per_cell: int, *, show: bool):
        self.passes_per_cell = passes_per_cell
        console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self._task = self._bar.add_task(what, total=num_cells)

    def watch(self, predict: Predict) -> Predict:
        """`predict`, which moves the bar at every pass: all cells may be taken at once."""

        def watched(gene_ids, *others) -> Tensor:
            logits = predict(gene_ids, *others)
            self._bar.advance(self._task, len(gene_ids) / self.passes_per_cell)
            return logits

        return watched

    def done(self, num_cells: int) -> None:
        """So many cells are done; steps that revealed nothing took no pass."""
        self._bar.update(self._task, completed=num_cells)

    def __enter__(self) -> "SamplingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
