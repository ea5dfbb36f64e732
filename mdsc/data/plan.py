"""The order of training cells: a pure function of (row groups, seed, epoch), known without reading a cell.

    row groups   their training rows are shuffled and cut into pieces of at most `piece_rows`
    pieces       are shuffled over the whole data set and laid end to end
    lanes        cut this line into `num_lanes` equal lengths; where a cut falls inside a piece, two lanes share it
    windows      a lane shuffles the cells of `window` consecutive pieces together
    steps        global step k takes the next cells of each lane, the same number from each

Rank r of N serves lanes r, r + N, ...; the lanes do not know N, so neither does any batch. Each epoch has
`num_cells // global_batch_size` steps, on every rank. The cells that are left over at the end of the line, fewer than
`global_batch_size`, sit that epoch out; the next one leaves out others. All other training cells come exactly once.

A piece is a whole row group where the data is large, so that each is read once; in small data it is a fraction of one,
so that a single row group still fills every lane and window. Shards are often sorted by plate or donor: a batch then
mixes num_lanes * window random pieces, and a process holds in memory its lanes' share of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Int64

from mdsc.data.keyed_streams import Purpose, permutation, stream
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.validation_split import num_validation_rows, split_rows
from mdsc.errors import UserError

LARGEST_PIECE = 1024


@dataclass(frozen=True)
class CellAddresses:
    """Where some cells lie: number of the row group in the plan's list, and row in it."""

    group: Int64[np.ndarray, " cells"]
    row: Int64[np.ndarray, " cells"]

    def __getitem__(self, chosen) -> "CellAddresses":
        return CellAddresses(self.group[chosen], self.row[chosen])


class LanePlan:
    """The orders of all epochs; `epoch` gives one."""

    def __init__(
        self,
        row_groups: Sequence[RowGroupRef],
        *,
        seed: int,
        global_batch_size: int,
        num_lanes: int,
        window: int,
        validation_fraction: float,
    ):
        if global_batch_size % num_lanes:
            raise UserError(
                f"--train.global-batch-size {global_batch_size} is no multiple of --data.num-lanes {num_lanes}: "
                "each step takes the same number of cells from every lane."
            )
        self.row_groups = tuple(row_groups)
        self.seed = seed
        self.num_lanes = num_lanes
        self.window = window
        self.validation_fraction = validation_fraction
        self.cells_per_lane = global_batch_size // num_lanes
        self._train_rows = np.array(
            [ref.rows - num_validation_rows(ref, validation_fraction) for ref in self.row_groups], dtype=np.int64
        )
        self.num_cells = int(self._train_rows.sum())
        self.steps_per_epoch = self.num_cells // global_batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"There are {self.num_cells} training cells, fewer than --train.global-batch-size {global_batch_size}: "
                "take a smaller global batch."
            )
        self.piece_rows = max(1, min(LARGEST_PIECE, self.num_cells // (num_lanes * window)))

    def epoch(self, epoch: int) -> "EpochPlan":
        return EpochPlan(self, epoch)

    def shuffled_rows(self, epoch: int, group: int) -> Int64[np.ndarray, " rows"]:
        """This epoch's order of one row group's training rows, from which its pieces are cut."""
        rows, _ = split_rows(self.row_groups[group], self.validation_fraction)
        return rows[permutation(stream(Purpose.ROWS, self.seed, epoch, group), len(rows))]

    def pieces(self) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
        """(group, start, stop) of every piece in its row group's shuffled training rows, sizes as even as can be."""
        per_group = -(-self._train_rows // self.piece_rows)
        group = np.repeat(np.arange(len(per_group)), per_group)
        number = np.arange(len(group)) - np.repeat(np.cumsum(per_group) - per_group, per_group)
        rows, cuts = self._train_rows[group], per_group[group]
        return group, rows * number // cuts, rows * (number + 1) // cuts


class EpochPlan:
    """One epoch's order. Keeps each lane's current window, so it is cheap to ask step by step; seeking is as cheap."""

    def __init__(self, plan: LanePlan, epoch: int):
        self.plan = plan
        self.number = epoch
        group, start, stop = plan.pieces()
        order = permutation(stream(Purpose.PIECES, plan.seed, epoch), len(group))
        self._group, self._start, self._stop = group[order], start[order], stop[order]
        self._end = np.cumsum(self._stop - self._start)  # where each piece ends in the line of all training cells
        self._windows: dict[int, _Window] = {}

    def cells(self, step: int, lane: int) -> CellAddresses:
        """The cells that `lane` gives to global step `step` of this epoch."""
        assert 0 <= step < self.plan.steps_per_epoch
        first = step * self.plan.cells_per_lane
        wanted = np.arange(first, first + self.plan.cells_per_lane)
        groups, rows = np.empty_like(wanted), np.empty_like(wanted)
        done = 0
        while done < len(wanted):
            window = self._window_at(lane, first + done)
            part = wanted[done:] - window.start
            part = part[part < len(window.cells.group)]
            groups[done : done + len(part)] = window.cells.group[part]
            rows[done : done + len(part)] = window.cells.row[part]
            done += len(part)
        return CellAddresses(groups, rows)

    def groups_in_use(self, lane: int) -> frozenset[int]:
        """Numbers of the row groups of the lane's window, after its `cells` of a step."""
        return self._windows[lane].groups

    def _window_at(self, lane: int, position: int) -> "_Window":
        held = self._windows.get(lane)
        if held is None or not 0 <= position - held.start < len(held.cells.group):
            held = self._windows[lane] = self._open_window(lane, position)
        return held

    def _open_window(self, lane: int, position: int) -> "_Window":
        plan = self.plan
        lane_length = plan.steps_per_epoch * plan.cells_per_lane
        lane_start = lane * lane_length
        first_piece, this_piece = np.searchsorted(self._end, [lane_start, lane_start + position], side="right")
        # First windows are of staggered sizes, so that lanes do not all turn to new row groups in the same step.
        first_size = plan.window - lane * plan.window // plan.num_lanes
        number = max(0, 1 + (this_piece - first_piece - first_size) // plan.window)
        begin = first_piece + (first_size + (number - 1) * plan.window if number else 0)
        end = min(first_piece + first_size + number * plan.window, len(self._end))

        shuffled_rows = cache(lambda group: plan.shuffled_rows(self.number, group))
        groups, rows = [], []
        for piece in range(begin, end):
            piece_start = self._end[piece] - (self._stop[piece] - self._start[piece])
            skipped = max(0, lane_start - piece_start)  # belongs to the lane before
            taken = min(self._end[piece], lane_start + lane_length) - piece_start  # what is left, to the one after
            if taken <= skipped:
                break
            part = shuffled_rows(int(self._group[piece]))[self._start[piece] + skipped : self._start[piece] + taken]
            rows.append(part)
            groups.append(np.full(len(part), self._group[piece]))
        cells = CellAddresses(np.concatenate(groups), np.concatenate(rows))
        order = permutation(stream(Purpose.WINDOW, plan.seed, self.number, lane, int(number)), len(cells.group))
        first_cell = self._end[begin] - (self._stop[begin] - self._start[begin])
        return _Window(start=int(max(first_cell, lane_start)) - lane_start, cells=cells[order])


@dataclass(frozen=True)
class _Window:
    """The shuffled cells of a window, and where in the lane they start."""

    start: int
    cells: CellAddresses

    @cached_property
    def groups(self) -> frozenset[int]:
        return frozenset(self.cells.group.tolist())
