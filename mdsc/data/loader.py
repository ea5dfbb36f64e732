"""CellLoader: global step -> this rank's batch of cells, a pure function of (manifest, seed, step)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from types import MappingProxyType

import numpy as np

from mdsc.config.schema import DataConfig
from mdsc.data.batch import CellBatch
from mdsc.data.dense_cells import DenseCells
from mdsc.data.folds import NO_FOLD
from mdsc.data.gene_sets import GeneSets, draw_expressed, gene_weights
from mdsc.data.keyed_streams import Purpose, stream
from mdsc.data.plan import EpochPlan, LanePlan
from mdsc.data.prefetch import prefetched
from mdsc.data.quarantine import Quarantine, Quarantined, TrainingCells
from mdsc.data.shards import ShardFolder
from mdsc.data.token_groups import TokenGroup, TokenGroups, tokenise
from mdsc.data.tokenizers import Tokenizer
from mdsc.data.validation_split import some_validation_rows
from mdsc.errors import UserError


class CellLoader:
    """Batches of training cells, and validation cells.

    Neither the number of processes nor `prefetch` changes a single token: the plan fixes the cells of a step, and the
    genes that are drawn depend on (seed, epoch, step, lane) alone, or in the expressed-only draw on the cell.

    In memory are at most (lanes of this rank + 1) * window row groups, at about 5 bytes per nonzero count: with 8
    lanes, a window of 16 and row groups of 1,000 cells with 1,450 genes, 1 GB.
    """

    def __init__(
        self,
        folder: ShardFolder,
        tokenizer: Tokenizer,
        settings: DataConfig,
        *,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        levels: Mapping[str, Sequence[str]] = MappingProxyType({}),
        quarantined: Sequence[Quarantined] = (),
    ):
        """`levels` gives the known levels of each condition column that the batches shall carry; `quarantined` what an
        earlier part of the run has found corrupt: it stays replaced, so that the tokens stay the same."""
        assert 0 <= rank < world_size
        if settings.num_lanes % world_size:
            raise UserError(
                f"--data.num-lanes {settings.num_lanes} is no multiple of the number of processes, {world_size}: "
                "the processes share out the lanes evenly."
            )
        self.folder = folder
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.lanes = range(rank, settings.num_lanes, world_size)
        self.levels = {name: tuple(known) for name, known in levels.items()}
        self.quarantine = Quarantine(
            folder,
            validation_fraction=settings.validation_fraction,
            on_corrupt=settings.on_corrupt,
            recorded=quarantined,
        )
        self.plan = LanePlan(
            folder.row_groups("train"),
            seed=seed,
            global_batch_size=global_batch_size,
            num_lanes=settings.num_lanes,
            window=settings.window,
            validation_fraction=settings.validation_fraction,
        )
        rate, share, size = folder.statistics.detection_rate, settings.uniform_share, settings.num_genes
        self._detection_sets = GeneSets(gene_weights(rate, share), size)
        self._sets = (
            GeneSets(gene_weights(rate, 1.0), size) if settings.gene_draw == "uniform" else self._detection_sets
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def quarantined(self) -> tuple[Quarantined, ...]:
        """The row groups that this process has replaced so far, and the ones that it was told of."""
        return self.quarantine.found

    def iterate(self, start_step: int = 0) -> Iterator[CellBatch]:
        """This rank's share of global steps `start_step`, `start_step` + 1, ..., without end.

        Starting late costs no more than starting at 0. Close the iterator (or let go of it) to end its thread.
        """
        return prefetched(self._batches(start_step), self.settings.prefetch)

    def validation_batch(self, num_cells: int) -> CellBatch:
        """At most `num_cells` validation cells, over one gene set drawn by detection rate, zeros included.

        The same for every seed, rank and way of drawing genes, so that runs can be compared. Those of a quarantined
        row group are left out.
        """
        fraction = self.settings.validation_fraction
        chosen = [
            (rows, tokenise(TrainingCells(group, np.full(ref.rows, NO_FOLD)), self.tokenizer, self.levels))
            for ref, rows in some_validation_rows(self.plan.row_groups, fraction, num_cells).items()
            if (group := self.quarantine.read(ref, tuple(self.levels))) is not None
        ]
        if not chosen:
            raise UserError(
                f"--data.validation-fraction {fraction} leaves no validation cell in {self.folder.path}: raise it."
            )
        gene_set = self._detection_sets.draw(stream(Purpose.VALIDATION_BATCH, 0, 1))
        dense = self._dense(sum(len(group_rows) for group_rows, _ in chosen), len(gene_set))
        groups, rows = [], []
        for group_rows, group in chosen:
            dense.fill_gene_set(len(rows), [group.cell(row) for row in group_rows.tolist()], gene_set)
            groups += [group] * len(group_rows)
            rows += group_rows.tolist()
        return dense.batch(np.arange(len(rows)), np.full(len(rows), NO_FOLD), self._categories(groups, rows))

    def _batches(self, start_step: int) -> Iterator[CellBatch]:
        kept = TokenGroups(
            self.quarantine, self.tokenizer, self.levels, capacity=(len(self.lanes) + 1) * self.settings.window
        )
        order = None
        for global_step in count(start_step):
            epoch, step = divmod(global_step, self.steps_per_epoch)
            if order is None or order.number != epoch:
                order = self.plan.epoch(epoch)
            yield self._batch(kept, order, step)

    def _batch(self, kept: TokenGroups, order: EpochPlan, step: int) -> CellBatch:
        size = self.plan.cells_per_lane
        dense = self._dense(size * len(self.lanes), self._sets.num_genes)
        groups, rows, folds = [], [], []
        for lane in self.lanes:
            addresses = order.cells(step, lane)
            group_numbers, lane_rows = addresses.group.tolist(), addresses.row.tolist()
            lane_groups = [kept.get(self.plan.row_groups[number]) for number in group_numbers]
            cells = [group.cell(row) for group, row in zip(lane_groups, lane_rows, strict=True)]
            if self.settings.gene_draw == "expressed":
                for place, (cell, number, row) in enumerate(zip(cells, group_numbers, lane_rows, strict=True)):
                    source = stream(Purpose.EXPRESSED_GENES, self.seed, order.number, number, row)
                    drawn = draw_expressed(len(cell.counts), self._sets.num_genes, source)
                    dense.fill_entries(len(rows) + place, cell, drawn)
            else:
                source = stream(Purpose.GENE_SET, self.seed, order.number, step, lane)
                dense.fill_gene_set(len(rows), cells, self._sets.draw(source))
            groups += lane_groups
            rows += lane_rows
            folds += [group.fold[row] for group, row in zip(lane_groups, lane_rows, strict=True)]
        cell_index = np.concatenate([np.arange(lane * size, (lane + 1) * size) for lane in self.lanes])
        return dense.batch(cell_index, np.array(folds), self._categories(groups, rows))

    def _dense(self, num_cells: int, num_genes: int) -> DenseCells:
        return DenseCells(
            num_cells,
            num_genes,
            vocabulary_size=len(self.folder.vocabulary),
            pad_token=self.tokenizer.pad_token,
        )

    def _categories(self, groups: Sequence[TokenGroup], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Levels of cells that are given by their row groups and rows in these."""
        return {
            name: np.array([group.categories[name][row] for group, row in zip(groups, rows, strict=True)])
            for name in self.levels
        }
