"""How well batches mix Tahoe-100M's plates, in whose order its files are: the plan alone, no cell is read."""

from dataclasses import dataclass

import numpy as np
from loader_paths import plate_entropy

from mdsc.data.plan import LanePlan
from mdsc.data.row_groups import RowGroupRef

SHARDS_OF_PLATE = (189, 274, 149, 238, 212, 260, 187, 304, 198, 277, 254, 365, 291, 223)
"""Files of plates 1 .. 14 in Tahoe-100M, revision 2dc57900: 28 row groups of 1,000 cells and one of 224 each."""
ROW_GROUPS_OF_SHARD = (*[1000] * 28, 224)


@dataclass(frozen=True)
class Mixing:
    lanes: int
    window: int
    entropy: float
    """Bits, of the plate of a cell in a device batch."""
    ideal: float
    """Of as many cells drawn at random from all."""


def mixing(device_batch: int, lanes: int, window: int, *, seed: int = 0, num_batches: int = 200) -> Mixing:
    """Of device batches that take the same number of cells from each of `lanes` lanes of a process."""
    plate_of_shard = np.repeat(np.arange(len(SHARDS_OF_PLATE)), SHARDS_OF_PLATE)
    refs = [
        RowGroupRef(f"train-{shard:05d}", group, rows)
        for shard in range(len(plate_of_shard))
        for group, rows in enumerate(ROW_GROUPS_OF_SHARD)
    ]
    plate = np.repeat(plate_of_shard, len(ROW_GROUPS_OF_SHARD))
    plan = LanePlan(
        refs,
        seed=seed,
        global_batch_size=device_batch,
        num_lanes=lanes,
        window=window,
        validation_fraction=0.0,
    )
    order = plan.epoch(0)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(plan.steps_per_epoch, num_batches, replace=False).tolist()
    batches = [np.concatenate([plate[order.cells(step, lane).group] for lane in range(lanes)]) for step in chosen]
    cells_of_plate = np.bincount(plate, [ref.rows for ref in refs])
    random = rng.choice(len(cells_of_plate), p=cells_of_plate / cells_of_plate.sum(), size=(5000, device_batch))
    num_plates = len(SHARDS_OF_PLATE)
    return Mixing(lanes, window, plate_entropy(np.stack(batches), num_plates), plate_entropy(random, num_plates))
