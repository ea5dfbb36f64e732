"""CellLoader: global step -> this rank's batch of cells, a pure function of (manifest, seed, step)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from types import MappingProxyType

import numpy as np
import torch

from mdsc.config.schema import DataConfig
from mdsc.data.batch import CellBatch
from mdsc.data.dense_cells import DenseCells, joined
from mdsc.data.folds import NO_FOLD
from mdsc.data.gene_sets import GeneSets, draw_expressed, gene_weights
from mdsc.data.keyed_streams import Purpose, stream
from mdsc.data.loader_workers import parts_of_workers
from mdsc.data.mixed_plan import MixedOrder, MixedPlan
from mdsc.data.pinned_memory import pinned
from mdsc.data.prefetch import prefetched
from mdsc.data.quarantine import Quarantine, Quarantined, TrainingCells
from mdsc.data.row_groups import Portion
from mdsc.data.shards import ShardFolder
from mdsc.data.token_groups import TokenGroup, TokenGroups, entries_of, tokenise
from mdsc.data.tokenizers import Tokenizer
from mdsc.data.validation_split import some_validation_rows
from mdsc.errors import UserError


class CellLoader:
    """Batches of training cells, and validation cells.

    Neither the number of processes nor `workers` or `prefetch` changes a single token: the plan fixes the cells of a
    step, and the genes that are drawn depend on (seed, epoch, step, lane) alone, or in the expressed-only draw on the
    cell.

    In memory are the row groups of the lanes' windows, at some 4 bytes per nonzero count: with 8 lanes, a window of 16
    and row groups of 1,000 cells with 1,450 genes, 0.75 GB. Worker processes share the lanes, and so the memory: each
    has some of them.
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
                f"launch a number that divides them, or give {-(-settings.num_lanes // world_size) * world_size} lanes "
                "to a new run: they are part of the order of its cells."
            )
        if settings.workers > (num_lanes := settings.num_lanes // world_size):
            raise UserError(
                f"--data.workers {settings.workers} is more than the {num_lanes} lanes of a process (--data.num-lanes "
                f"{settings.num_lanes} over {world_size}), which its workers share out: give {num_lanes} at most."
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
        portions = folder.portions()
        self.plan = MixedPlan(
            portions,
            seed=seed,
            global_batch_size=global_batch_size,
            num_lanes=settings.num_lanes,
            window=settings.window,
            validation_fraction=settings.validation_fraction,
        )
        self._detection_sets = [self._gene_sets(portion, settings.uniform_share) for portion in portions]
        is_uniform = settings.gene_draw == "uniform"
        self._sets = [self._gene_sets(portion, 1.0) for portion in portions] if is_uniform else self._detection_sets
        self._width = max(sets.num_genes for sets in self._sets)

    def _gene_sets(self, portion: Portion, uniform_share: float) -> GeneSets:
        """Of the genes that were measured."""
        weights = np.zeros(len(portion.measured))
        weights[portion.measured] = gene_weights(portion.detection_rate[portion.measured], uniform_share)
        return GeneSets(weights, self.settings.num_genes)

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def quarantined(self) -> tuple[Quarantined, ...]:
        """The row groups that this process has replaced so far, and the ones that it was told of."""
        return self.quarantine.found

    def iterate(self, start_step: int = 0, device: torch.device | None = None) -> Iterator[CellBatch]:
        """This rank's share of global steps `start_step`, `start_step` + 1, ..., without end.

        Starting late costs no more than starting at 0. `device` is where the batches will be sent: for a GPU they lie
        in page-locked memory. Close the iterator (or let go of it) to end its thread or workers.
        """
        num_workers, depth = self.settings.workers, self.settings.prefetch
        if num_workers:
            parts = parts_of_workers(self.parts, self.lanes, start_step, num_workers=num_workers, depth=depth)
        else:
            parts = self.parts(self.lanes, start_step)
        batches = self._joined_steps(parts, max(num_workers, 1))
        if device is not None and device.type == "cuda":
            return prefetched(pinned(batches, device), max(depth, 1))
        return batches if num_workers else prefetched(batches, depth)

    def parts(self, lanes: Sequence[int], start_step: int = 0) -> Iterator[DenseCells]:
        """What these lanes give to global steps `start_step`, `start_step` + 1, ...: what one process computes."""
        capacity = len(lanes) * self.settings.window
        kept = TokenGroups(self.quarantine, self.tokenizer, self.levels, capacity=capacity)
        order = MixedOrder(self.plan)
        for global_step in count(start_step):
            yield self._part(kept, order, global_step, lanes)

    def validation_batch(self, num_cells: int) -> CellBatch:
        """At most `num_cells` validation cells, over one gene set drawn by detection rate, zeros included.

        The same for every seed, rank and way of drawing genes, so that runs can be compared. Those of a quarantined
        row group are left out.
        """
        fraction = self.settings.validation_fraction
        found: dict[int, tuple[list[TokenGroup], list[int]]] = {}
        for ref, chosen in some_validation_rows(self.plan.row_groups, fraction, num_cells).items():
            if (cells := self.quarantine.read(ref, tuple(self.levels))) is not None:
                cells = TrainingCells(cells, np.full(ref.rows, NO_FOLD))
                group = tokenise(cells, self.tokenizer, self.levels, len(self.folder.vocabulary))
                groups, rows = found.setdefault(self.folder.portion_of(ref), ([], []))
                groups += [group] * len(chosen)
                rows += chosen.tolist()
        if not found:
            raise UserError(
                f"--data.validation-fraction {fraction} leaves no validation cell in {self.folder.path}: raise it."
            )
        width, first, batches = max(self._detection_sets[number].num_genes for number in found), 0, []
        for number, (groups, rows) in found.items():
            gene_set = self._detection_sets[number].draw(stream(Purpose.VALIDATION_BATCH, 0, 1))
            dense = self._empty((1, len(rows), width), groups, shared_genes=True)
            dense.fill_gene_set(0, groups, rows, gene_set, len(self.folder.vocabulary))
            dense.tell(0, np.arange(first, first + len(rows)), groups, rows)
            batches.append(joined([dense]).widened())
            first += len(rows)
        return CellBatch.concatenated(batches)

    def _part(self, kept: TokenGroups, order: MixedOrder, global_step: int, lanes: Sequence[int]) -> DenseCells:
        size, row_groups = self.plan.cells_per_lane, self.plan.row_groups
        turns = [order.turn(global_step, lane) for lane in lanes]
        numbers = list(dict.fromkeys(number for turn in turns for number in turn.cells.group.tolist()))
        in_use = [row_groups[number] for lane in lanes for number in order.groups_in_use(lane)]
        needed = dict(zip(numbers, kept.get([row_groups[number] for number in numbers], in_use), strict=True))
        by_cell = self.settings.gene_draw == "expressed"
        dense = self._empty((len(lanes), size, self._width), needed.values(), shared_genes=not by_cell)
        for place, (lane, turn) in enumerate(zip(lanes, turns, strict=True)):
            rows, group_numbers = turn.cells.row.tolist(), turn.cells.group.tolist()
            groups = [needed[number] for number in group_numbers]
            if by_cell:
                entries = entries_of(groups, rows)
                starts = entries.indptr.tolist()
                for cell, (number, row) in enumerate(zip(group_numbers, rows, strict=True)):
                    source = stream(Purpose.EXPRESSED_GENES, self.seed, turn.epoch, number, row)
                    drawn = draw_expressed(starts[cell + 1] - starts[cell], self._width, source)
                    dense.fill_entries(place, cell, entries, starts[cell] + drawn)
            else:
                source = stream(Purpose.GENE_SET, self.seed, turn.epoch, turn.step, lane)
                gene_set = self._sets[turn.portion].draw(source)
                dense.fill_gene_set(place, groups, rows, gene_set, len(self.folder.vocabulary))
            dense.tell(place, np.arange(lane * size, (lane + 1) * size), groups, rows)
        return replace(dense, quarantined=self.quarantine.found)

    def _empty(self, shape: tuple[int, int, int], groups: Iterable[TokenGroup], *, shared_genes: bool) -> DenseCells:
        return DenseCells.empty(
            shape,
            shared_genes=shared_genes,
            count_type=np.result_type(*{group.count_type for group in groups}),
            pad_token=self.tokenizer.pad_token,
            columns=tuple(self.levels),
        )

    def _joined_steps(self, parts: Iterator[DenseCells], parts_per_step: int) -> Iterator[CellBatch]:
        with closing(parts):
            while True:
                step = [next(parts) for _ in range(parts_per_step)]
                for part in step:
                    self.quarantine.add(part.quarantined)
                yield joined(step)
