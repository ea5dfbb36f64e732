"""A bar of the cells that are done, which moves with every pass of the model."""

from torch import Tensor

from mdsc.diffusion.evidence import Predict
from mdsc.progress import CellProgress


class SamplingProgress(CellProgress):
    """An output that is no terminal gets a line now and then."""

    def __init__(self, what: str, num_cells: int, passes_per_cell: int, *, show: bool):
        super().__init__(what, num_cells, show=show, lines=True)
        self.passes_per_cell = passes_per_cell
        self._cells_done = 0.0

    def watch(self, predict: Predict) -> Predict:
        """`predict`, which moves the bar at every pass: all cells may be taken at once."""

        def watched(gene_ids, *others, **options) -> Tensor:
            logits = predict(gene_ids, *others, **options)
            self.done(self._cells_done + len(gene_ids) / self.passes_per_cell)
            return logits

        return watched

    def done(self, num_cells: float | int) -> None:
        """So many cells are done; steps that revealed nothing took no pass."""
        self._cells_done = num_cells
        super().done(num_cells)
