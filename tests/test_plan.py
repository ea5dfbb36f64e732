"""The lane plan: every training cell once an epoch, in an order that no process count and no restart can change."""

import numpy as np
import pytest

from mdsc.data.plan import LanePlan
from mdsc.data.row_groups import RowGroupRef
from mdsc.data.validation_split import num_validation_rows, some_validation_rows, split_rows
from mdsc.errors import UserError


def make_plan(rows, *, seed=0, batch=32, lanes=8, window=16, fraction=0.05) -> LanePlan:
    refs = [RowGroupRef(f"train-{number // 4:05d}.parquet", number % 4, n) for number, n in enumerate(rows)]
    return LanePlan(
        refs, seed=seed, global_batch_size=batch, num_lanes=lanes, window=window, validation_fraction=fraction
    )


def step_addresses(plan, epoch, step):
    """(cells, 2) array of (row group, row) of a global step, in the order of the global batch."""
    order = plan.epoch(epoch)
    cells = [order.cells(step, lane) for lane in range(plan.num_lanes)]
    return np.concatenate([np.stack([c.group, c.row], axis=1) for c in cells])


def epoch_addresses(plan, epoch):
    order = plan.epoch(epoch)
    cells = [order.cells(step, lane) for step in range(plan.steps_per_epoch) for lane in range(plan.num_lanes)]
    return np.concatenate([np.stack([c.group, c.row], axis=1) for c in cells])


LAYOUTS = [
    pytest.param([580], 32, 8, 16, id="one small row group"),
    pytest.param([1000] * 9 + [137], 64, 8, 2, id="whole row groups as pieces"),
    pytest.param([1000] * 40, 64, 4, 3, id="many windows"),
    pytest.param([1, 1, 5, 40, 3, 2, 1, 77], 8, 8, 16, id="tiny uneven row groups"),
    pytest.param([5000], 50, 5, 1, id="row group larger than a piece"),
    pytest.param([100], 1, 1, 1, id="one lane, one cell a step"),
]


@pytest.mark.parametrize(("rows", "batch", "lanes", "window"), LAYOUTS)
@pytest.mark.parametrize("fraction", [pytest.param(0.0, id="no validation"), pytest.param(0.07, id="validation")])
def test_each_training_cell_comes_once_an_epoch(rows, batch, lanes, window, fraction):
    plan = make_plan(rows, batch=batch, lanes=lanes, window=window, fraction=fraction)
    validation = {(g, r) for g, ref in enumerate(plan.row_groups) for r in split_rows(ref, fraction)[1].tolist()}
    assert plan.num_cells == sum(rows) - len(validation)

    served = epoch_addresses(plan, epoch=3)
    assert len(served) == plan.steps_per_epoch * batch
    assert plan.num_cells - len(served) < batch
    as_set = set(map(tuple, served.tolist()))
    assert len(as_set) == len(served)
    assert not as_set & validation
    assert all(0 <= row < plan.row_groups[group].rows for group, row in as_set)


def test_remainder_is_another_one_in_the_next_epoch():
    plan = make_plan([580], batch=64)
    training = set(split_rows(plan.row_groups[0], 0.05)[0].tolist())
    left_out = [training - set(epoch_addresses(plan, epoch)[:, 1].tolist()) for epoch in (0, 1)]
    assert all(len(cells) == plan.num_cells % 64 for cells in left_out)
    assert left_out[0] != left_out[1]


def test_any_step_is_known_without_the_steps_before_it():
    plan = make_plan([1000] * 12, batch=64, window=2)
    order = plan.epoch(1)
    in_turn = [[order.cells(step, lane) for lane in range(8)] for step in range(plan.steps_per_epoch)]
    for step in np.random.default_rng(0).permutation(plan.steps_per_epoch)[:25]:
        for lane in (0, 3, 7):
            sought = make_plan([1000] * 12, batch=64, window=2).epoch(1).cells(int(step), lane)
            np.testing.assert_array_equal(sought.group, in_turn[step][lane].group)
            np.testing.assert_array_equal(sought.row, in_turn[step][lane].row)


def test_epochs_and_seeds_have_other_orders():
    first = epoch_addresses(make_plan([580]), 0)
    assert (first == epoch_addresses(make_plan([580]), 0)).all()
    for other in (epoch_addresses(make_plan([580]), 1), epoch_addresses(make_plan([580], seed=1), 0)):
        assert (first == other).all(axis=1).mean() < 0.05


def test_a_single_row_group_is_shuffled_evenly():
    """Where a cell lies in its row group says nothing about when it comes or in which lane."""
    plan = make_plan([580], fraction=0.0)
    position = np.zeros(580)
    lane_rows = np.zeros(plan.num_lanes)
    epochs = 60
    for epoch in range(epochs):
        served = epoch_addresses(plan, epoch)[:, 1]
        when = np.full(580, np.nan)
        when[served] = np.arange(len(served)) / len(served)
        position += np.nan_to_num(when, nan=1.0)
        lane_rows += served.reshape(plan.steps_per_epoch, plan.num_lanes, -1).mean(axis=(0, 2))
    halves = (position[:290].mean() - position[290:].mean()) / epochs
    # Uniform on [0, 1]: standard deviation 0.289 a cell and epoch.
    assert abs(halves) < 4 * 0.289 * np.sqrt(2 / (290 * epochs))
    assert np.abs(lane_rows / epochs - 289.5).max() < 4 * 167.4 / np.sqrt(epochs * 580 / 8)


def test_sorted_data_is_mixed_in_each_batch():
    """14 plates stored one after the other, as published atlases are: a batch still sees nearly all of them."""
    plan = make_plan([1000] * 280, batch=128, lanes=8, window=16)
    plate = np.arange(280) // 20
    entropies = []
    for step in np.linspace(0, plan.steps_per_epoch - 1, 30).astype(int):
        share = np.bincount(plate[step_addresses(plan, 0, int(step))[:, 0]], minlength=14) / 128
        entropies.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
    rng = np.random.default_rng(0)
    ideal = [np.bincount(rng.integers(0, 14, 128), minlength=14) / 128 for _ in range(200)]
    ideal = np.mean([-(s[s > 0] * np.log2(s[s > 0])).sum() for s in ideal])
    assert np.mean(entropies) > 0.95 * ideal


def test_few_row_groups_are_needed_at_once():
    """Whole row groups are opened once an epoch: no group is wanted by two windows far apart."""
    plan = make_plan([1000] * 300, batch=64, lanes=2, window=4, fraction=0.0)
    assert plan.piece_rows == 1024
    order = plan.epoch(0)
    live = 2 * 4 + 4
    recent: list[int] = []
    reads = 0
    for step in range(plan.steps_per_epoch):
        for lane in range(2):
            for group in order.cells(step, lane).group.tolist():
                if group in recent:
                    recent.remove(group)
                else:
                    reads += 1
                recent = [*recent, group][-live:]
    assert reads <= 300 + 2  # a group that a lane's boundary cuts may be read by both


def test_the_plan_of_an_atlas_is_quick():
    plan = make_plan([1000] * 20_000, batch=512, lanes=64)
    cells = plan.epoch(5).cells(plan.steps_per_epoch - 1, 63)
    assert len(cells.group) == 8


def test_validation_rows_do_not_depend_on_the_run():
    refs = [RowGroupRef(file="train-00000.parquet", group=group, rows=rows) for group, rows in enumerate([1000, 7, 1])]
    for ref in refs:
        train, validation = split_rows(ref, 0.1)
        assert sorted([*train, *validation]) == list(range(ref.rows))
        assert len(validation) == num_validation_rows(ref, 0.1)
    assert (split_rows(refs[0], 0.1)[1] == split_rows(RowGroupRef("train-00000.parquet", 0, 1000), 0.1)[1]).all()
    assert set(split_rows(refs[0], 0.1)[1]) < set(split_rows(refs[0], 0.2)[1])


def test_validation_share_holds_for_tiny_row_groups_too():
    refs = [RowGroupRef(file=f"{number}.parquet", group=0, rows=3) for number in range(4000)]
    total = sum(num_validation_rows(ref, 0.05) for ref in refs)
    assert abs(total - 600) < 4 * np.sqrt(4000 * 0.15 * 0.85)


@pytest.mark.parametrize(("num_cells", "spread", "groups"), [(25, 1, 3), (100, 64, 64), (20, 1, 2), (5000, 64, 100)])
def test_the_validation_batch_is_spread_evenly(num_cells, spread, groups):
    refs = [RowGroupRef(file=f"{number % 10}.parquet", group=number // 10, rows=50) for number in range(100)]
    found = some_validation_rows(refs, 0.2, num_cells, spread=spread)
    sizes = [len(rows) for rows in found.values()]
    assert (sum(sizes), len(found)) == (min(num_cells, 1000), groups)
    assert max(sizes) - min(sizes) <= 1
    for ref, rows in found.items():
        assert set(rows.tolist()) <= set(split_rows(ref, 0.2)[1].tolist())
        assert len(set(rows.tolist())) == len(rows)


def test_validation_rows_of_row_groups_differ():
    """By file and by number."""
    refs = [RowGroupRef(file=file, group=group, rows=1000) for file in ("a", "b") for group in (0, 1)]
    assert len({frozenset(split_rows(ref, 0.1)[1].tolist()) for ref in refs}) == 4


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        pytest.param(30, "multiple of --data.num-lanes", id="lanes do not share it"),
        pytest.param(1024, "take a smaller global batch", id="fewer cells than a batch"),
    ],
)
def test_impossible_batches_are_told(batch, message):
    with pytest.raises(UserError, match=message):
        make_plan([580], batch=batch)
