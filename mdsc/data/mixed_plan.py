"""The order of the training cells of one or several data sets: each has lanes, windows and epochs of its own.

A data set with weight w of W gets w / W of the lanes, and so of each batch, whatever its size: a small one comes round
more often. Of one data set this is its `LanePlan` and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdsc.data.plan import CellAddresses, EpochPlan, LanePlan
from mdsc.data.row_groups import Portion
from mdsc.errors import UserError


@dataclass(frozen=True)
class Turn:
    """What a lane gives to a global step."""

    portion: int
    epoch: int
    """Of its portion."""
    step: int
    """In this epoch."""
    cells: CellAddresses
    """Numbers of row groups are of `MixedPlan.row_groups`."""


class MixedPlan:
    """Which lanes are whose; `orders` gives the cells."""

    def __init__(
        self,
        portions: Sequence[Portion],
        *,
        seed: int,
        global_batch_size: int,
        num_lanes: int,
        window: int,
        validation_fraction: float,
    ):
        self.owner = lane_owners([portion.weight for portion in portions], num_lanes)
        if global_batch_size % num_lanes:
            raise UserError(
                f"--train.global-batch-size {global_batch_size} is no multiple of --data.num-lanes {num_lanes}: "
                "each step takes the same number of cells from every lane."
            )
        self.cells_per_lane = global_batch_size // num_lanes
        self.plans = [
            LanePlan(
                portion.row_groups,
                seed=seed + (number << 32),  # data sets of the same shape shall not be shuffled alike
                global_batch_size=self.cells_per_lane * self.owner.count(number),
                num_lanes=self.owner.count(number),
                window=window,
                validation_fraction=validation_fraction,
            )
            for number, portion in enumerate(portions)
        ]
        self.row_groups = tuple(ref for plan in self.plans for ref in plan.row_groups)
        self.first_group = np.cumsum([0] + [len(plan.row_groups) for plan in self.plans]).tolist()
        self.lane_in_portion = [self.owner[:lane].count(number) for lane, number in enumerate(self.owner)]

    @property
    def num_cells(self) -> int:
        """Training cells of all data sets."""
        return sum(plan.num_cells for plan in self.plans)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which each data set has come round at least once."""
        return max(plan.steps_per_epoch for plan in self.plans)

    def addresses(self, global_step: int, places: Sequence[int]) -> list[str]:
        """Lane, file, row group and row of the cells at these places (0 .. B-1) of a global batch, in words."""
        order, turns, found = MixedOrder(self), {}, []
        for place in places:
            lane, number = divmod(place, self.cells_per_lane)
            if lane not in turns:
                turns[lane] = order.turn(global_step, lane).cells
            ref = self.row_groups[turns[lane].group[number]]
            found.append(f"lane {lane}, {ref.file}, row group {ref.group}, row {turns[lane].row[number]}")
        return found


class MixedOrder:
    """Gives the cells of one global step after the other. Seeking costs no more than going on."""

    def __init__(self, plan: MixedPlan):
        self._plan = plan
        self._orders: list[EpochPlan | None] = [None] * len(plan.plans)

    def turn(self, global_step: int, lane: int) -> Turn:
        number = self._plan.owner[lane]
        plan = self._plan.plans[number]
        epoch, step = divmod(global_step, plan.steps_per_epoch)
        order = self._orders[number]
        if order is None or order.number != epoch:
            order = self._orders[number] = plan.epoch(epoch)
        cells = order.cells(step, self._plan.lane_in_portion[lane])
        first = self._plan.first_group[number]
        return Turn(number, epoch, step, CellAddresses(cells.group + first, cells.row))

    def groups_in_use(self, lane: int) -> list[int]:
        """Numbers of the row groups of the lane's window, after its `turn` of a step."""
        number = self._plan.owner[lane]
        groups = self._orders[number].groups_in_use(self._plan.lane_in_portion[lane])
        return [self._plan.first_group[number] + group for group in groups]


def lane_owners(weights: Sequence[float], num_lanes: int) -> list[int]:
    """Portion of each lane, in proportion to the weights: a lane goes to the portion that lacks most of its share."""
    share = np.array(weights) / sum(weights)
    given = np.zeros(len(weights))
    owner = []
    for lane in range(num_lanes):
        owner.append(int(np.argmax(share * (lane + 1) - given)))
        given[owner[-1]] += 1
    if len(set(owner)) < len(weights):
        raise UserError(
            f"--data.num-lanes {num_lanes} is too few for the smallest weight of the mixture, {min(weights):g} of "
            f"{sum(weights):g}: each data set needs a lane."
        )
    return owner
