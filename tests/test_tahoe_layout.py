"""Tahoe's files are sorted by plate: what the plan makes of that layout, known from all files' footers."""

import numpy as np
import pytest

from mdsc.config.schema import DataConfig
from mdsc.data.plan import LanePlan
from mdsc.data.row_groups import RowGroupRef

# Files that hold cells of each plate (files at a border count for both), of 28 row groups of 1,000 rows and one of 224.
FILES = {
    "plate3": 149, "plate7": 187, "plate1": 189, "plate9": 198, "plate5": 212, "plate14": 223, "plate4": 238,
    "plate11": 254, "plate6": 260, "plate2": 274, "plate10": 277, "plate13": 291, "plate8": 304, "plate12": 365,
}  # fmt: skip
ROWS = (*[1000] * 28, 224)


def entropy(plates: np.ndarray) -> float:
    """Bits."""
    share = np.bincount(plates) / len(plates)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [128, 256])
def test_device_batches_mix_plates_nearly_as_well_as_drawing_from_all_cells(batch: int):
    plate_of_file = np.repeat(np.arange(len(FILES)), list(FILES.values()))
    refs = [
        RowGroupRef(f"data/train-{file:05d}-of-03388.parquet", group, rows)
        for file in range(len(plate_of_file))
        for group, rows in enumerate(ROWS)
    ]
    settings = DataConfig()
    plan = LanePlan(
        refs,
        seed=0,
        global_batch_size=batch,
        num_lanes=settings.num_lanes,
        window=settings.window,
        validation_fraction=settings.validation_fraction,
    )
    assert plan.num_cells > 9e7
    plate_of_group = np.repeat(plate_of_file, len(ROWS))
    order = plan.epoch(0)
    # A lane's window is emptied in about window * 1000 / (batch / lanes) steps; take batches from many windows.
    steps = np.linspace(0, plan.steps_per_epoch - 1, 60).astype(int)
    found = [
        np.concatenate([order.cells(int(step), lane).group for lane in range(settings.num_lanes)]) for step in steps
    ]
    rng = np.random.default_rng(0)
    cells_of_plate = np.array(list(FILES.values())) / sum(FILES.values())
    ideal = np.mean([entropy(rng.choice(len(FILES), batch, p=cells_of_plate)) for _ in range(2000)])
    mixed = np.mean([entropy(plate_of_group[groups]) for groups in found])
    assert mixed >= 0.97 * ideal
