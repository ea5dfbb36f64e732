"""Steps that stand out: found where they are, seldom where they are not, and the same ones after a restart."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked_runs import ForkServer
from run_files import differences
from tiny_run import flags, tiny_config, tiny_shards

from mdsc.cli import main
from mdsc.config.schema import OptimConfig, TrackingConfig
from mdsc.training.loss_spikes import FEWEST, WINDOW, WORST, SpikeWindow
from mdsc.training.masked_task import MaskedTask
from mdsc.training.state_files import saved_steps, state_folder
from mdsc.training.tracking import read_metrics

DEFAULT = TrackingConfig().spike_threshold
NOISE = np.random.default_rng(0).normal(size=6000)


def found_in(losses, norms=None, *, threshold: float = DEFAULT, **train) -> list[tuple[int, str]]:
    """Steps that stand out, counted from 1, and by what."""
    window = SpikeWindow(threshold, OptimConfig(**({"warmup_steps": 0} | train)))
    values = zip(losses, np.ones(len(losses)) if norms is None else norms, strict=True)
    events = [window.add(step, float(loss), float(norm)) for step, (loss, norm) in enumerate(values, 1)]
    found = [(step, event["cause"]) for step, event in enumerate(events, 1) if event]
    assert window.count == len(found)
    return found


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.06])
def test_a_loss_that_doubles_is_found_and_nothing_else(noise: float):
    losses = 2 * (1 + noise * NOISE[:300])
    losses[200] = 4.5
    assert found_in(losses) == [(201, "loss")]
    assert found_in(np.ones(300), losses) == [(201, "grad_norm")]
    assert found_in(losses, threshold=0.0) == []


def test_a_spike_does_not_hide_the_next_and_a_new_level_is_soon_the_usual_one():
    losses = 2 * (1 + 0.02 * NOISE[:400])
    losses[[150, 151, 160]] *= 3
    assert [step for step, _ in found_in(losses)] == [151, 152, 161]
    losses[200:] *= 3
    steps = [step for step, _ in found_in(losses)][3:]
    assert steps[0] == 201
    assert len(steps) < 0.7 * WINDOW


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(3 + 0.3 * NOISE, id="noise"),
        pytest.param(1 + 2 * np.exp(-np.arange(len(NOISE)) / 500) + 0.1 * NOISE, id="falling"),
        pytest.param(np.exp(0.5 * NOISE), id="long-tail"),
        pytest.param(1 + 1e-4 * NOISE, id="hardly-moving"),
    ],
)
def test_noise_is_no_spike(losses):
    """6,000 steps; a normal law has some 1e-15 above 8 deviations, and the window's estimate of one scatters by 15%."""
    assert found_in(losses) == []
    assert found_in(np.ones(len(losses)), losses) == []


def test_the_threshold_is_in_standard_deviations():
    """Of a normal law 0.135% are above 3; the median of 128 and its deviation scatter, which makes it some more."""
    share = len(found_in(np.exp(0.1 * NOISE), threshold=3.0)) / len(NOISE)
    assert 0.001 < share < 0.005


def test_warm_up_and_the_begin_of_a_phase_are_left_out():
    losses = np.full(400, 2.0)
    losses[[20, 45, 120, 130]] = 9.0
    train = {"warmup_steps": 10, "pathway_steps": 100}
    # Steps 21 and 46 come when 10 and 35 steps of the first phase are known; 121 and 131 when 10 and 20 of the second.
    assert FEWEST == 32
    assert found_in(losses, **train) == [(46, "loss")]
    losses[160] = 9.0
    assert found_in(losses, **train) == [(46, "loss"), (161, "loss")]
    jump = np.where(np.arange(400) < 100, 1.0, 5.0)
    assert found_in(jump, **train) == []


@pytest.mark.parametrize(
    ("train", "first"),
    [
        ({"warmup_steps": 0}, 1 + FEWEST + 1),  # the first step has the start's loss
        ({"warmup_steps": 10}, 10 + FEWEST + 1),
        ({"warmup_steps": 10, "pathway_steps": 20}, 20 + 10 + FEWEST + 1),
        ({"warmup_steps": 10, "pathway_steps": 43}, 43),  # the last step of a phase is one of it
        ({"warmup_steps": 10, "pathway_steps": 42}, 42 + 10 + FEWEST + 1),
    ],
)
def test_enough_steps_must_be_known(train: dict[str, int], first: int):
    def is_found(step: int) -> bool:
        losses = np.full(100, 2.0)
        losses[step - 1] = 9.0
        return (step, "loss") in found_in(losses, **train)

    assert next(step for step in range(1, 90) if is_found(step)) == first


def test_small_changes_drops_and_zeros_are_no_spikes():
    still = np.full(100, 2.0)
    for factor, expected in ((1.07, []), (1.09, [(61, "loss")]), (0.1, [])):  # 8 deviations of a percent
        losses = still.copy()
        losses[60] *= factor
        assert found_in(losses) == expected
    norms = np.ones(100)
    norms[60] = 0.0
    assert found_in(still, norms) == []


def test_only_the_last_steps_are_compared_with():
    window = SpikeWindow(DEFAULT, OptimConfig(warmup_steps=0))
    for step in range(1, 3 * WINDOW):
        window.add(step, float(step), 1.0)
    assert window.state()["loss"] == [math.log(step) for step in range(3 * WINDOW - 128, 3 * WINDOW)]


def test_a_window_goes_on_from_its_state():
    losses = 2 * (1 + 0.05 * NOISE[:300])
    losses[[90, 250]] *= 4
    whole = SpikeWindow(DEFAULT, OptimConfig(warmup_steps=5))
    events = [whole.add(step, loss, loss) for step, loss in enumerate(losses, 1)]
    for cut in (3, 60, 95, 249, 250):
        first, second = (SpikeWindow(DEFAULT, OptimConfig(warmup_steps=5)) for _ in range(2))
        told = [first.add(step, loss, loss) for step, loss in enumerate(losses[:cut], 1)]
        second.restore(json.loads(json.dumps(first.state())))
        told += [second.add(step, loss, loss) for step, loss in enumerate(losses[cut:], cut + 1)]
        assert told == events
        assert second.count == whole.count == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spikes")
    tiny_shards(folder)
    return folder


def arguments(folder: Path, run: Path, *options: str) -> list[str]:
    """60 steps; the window fills from the warm-up's end on, at step 2."""
    config = replace(tiny_config(folder, max_steps=60), output_dir=str(run))
    every = ("--train.save-every", "15", "--train.validate-every", "30", "--train.log-every", "10")
    return [*flags(config), *every, "--train.keep-last", "9", *options]


def spoil(monkeypatch, step_of_spike: int, cell: int) -> None:
    """One cell of one step has a loss that is far too large."""
    losses = MaskedTask.losses

    def spoiled(self, model, step, cells):
        found = losses(self, model, step, cells)
        if step == step_of_spike:
            found["loss"] = found["loss"] * (1 + 999.0 * (cells.cell_index == cell))
        return found

    monkeypatch.setattr(MaskedTask, "losses", spoiled)


def events(run: Path) -> list[dict]:
    return [line for line in read_metrics(run) if line.get("event") == "loss_spike"]


def test_a_run_tells_of_a_spike_and_of_its_cells(folder: Path, tmp_path: Path, capsys, monkeypatch):
    spoil(monkeypatch, step_of_spike=49, cell=6)
    run = tmp_path / "run"
    assert main(["train", *arguments(folder, run)]) == 0
    (event,) = events(run)
    assert event["step"] == 50
    assert event["loss"] > 10 * event["median_loss"] > 0
    assert event["grad_norm"] > event["median_grad_norm"] > 0
    assert event["cells"][0] == 6
    assert event["cell_losses"][0] > 100 * event["cell_losses"][1] > 0
    # Places are dealt out lane by lane, four to each of four lanes.
    assert event["addresses"][0].startswith("lane 1, ")
    said = [line for line in capsys.readouterr().out.splitlines() if "stands out" in line]
    assert len(said) == 1
    assert f"at step 50, where {event['median_' + event['cause']]:.4g} was usual" in said[0]
    assert f"cells 6 ({event['addresses'][0]})" in said[0]
    assert [line["loss_spikes"] for line in read_metrics(run) if "loss" in line and "event" not in line] == [0] * 4 + [
        1
    ] * 2

    for until in (30, 45):
        copy = tmp_path / f"resumed-{until}"
        shutil.copytree(run, copy)
        for step in saved_steps(copy):
            if step > until:
                shutil.rmtree(state_folder(copy, step))
        assert main(["train", *arguments(folder, copy, "--resume", "auto")]) == 0
        assert differences(run, copy) == []

    assert main(["train", *arguments(folder, tmp_path / "off", "--tracking.spike-threshold", "0")]) == 0
    assert events(tmp_path / "off") == []


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def test_two_processes_tell_of_the_same_spike_once(folder: Path, server: ForkServer, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    said = server.finish(folder, arguments(folder, run), SPIKE_AT="49")
    (event,) = events(run)
    assert event["step"] == 50
    # Process 1 has lanes 1 and 3 of 4, so that its second cell is the second of lane 1.
    assert event["cells"][0] == 5
    assert event["addresses"][0].startswith("lane 1, ")
    assert said.count("stands out") == 1
    assert math.isclose(event["loss"], sum(event["cell_losses"][:1]) / 16, rel_tol=0.1)
    assert len(event["cells"]) == WORST
