"""Speeds in the log: the arithmetic of the trunk alone, none while it rests, over a peak that GPUs alone have."""

import json
from pathlib import Path

import pytest
import torch
from tiny_run import NUM_GENES, tiny_config, tiny_shards, tiny_trainer

from mdsc.model.trunk_size import training_flops
from mdsc.training import peak_flops, step_averages, trainer
from mdsc.training.step_averages import CLOCKED, StepAverages
from mdsc.training.tracking import Tracker, read_metrics

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = ("loss", "nll", "ordinal", "grad_norm")


def lines_of_a_run(folder: Path, **train) -> tuple[list[dict], int]:
    """Lines with a loss, and the floating-point operations of a cell."""
    tiny_shards(folder)
    config = tiny_config(folder, **train)
    with Tracker(config) as tracker:
        run, loader = tiny_trainer(config, tracker=tracker)
        run.run(loader.iterate(), save=lambda done: None)
    lines = [line for line in read_metrics(config.output_dir) if "loss" in line]
    return lines, training_flops(run.model, NUM_GENES)


def test_the_arithmetic_is_that_of_the_steps_that_the_trunk_takes_part_in(tmp_path: Path):
    """Six steps, of which the pathway has the first two alone; a line is of three."""
    (first, second), flops = lines_of_a_run(tmp_path, pathway_steps=2, log_every=3)
    assert flops > 0
    assert first["model_flops_per_second"] == pytest.approx(first["cells_per_second"] * flops / 3)
    assert second["model_flops_per_second"] == pytest.approx(second["cells_per_second"] * flops)
    assert "mfu" not in first.keys() | second.keys(), "a CPU's peak is not measured"


def test_on_a_gpu_it_is_told_as_a_share_of_the_peak(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trainer, "peak_of_run", lambda device, *, bf16, num_processes: 5e12 * num_processes)
    (line,), _ = lines_of_a_run(tmp_path, log_every=6)
    assert line["mfu"] == pytest.approx(line["model_flops_per_second"] / 5e12)


def test_a_peak_is_measured_for_gpus_alone_and_counts_all_of_them(monkeypatch):
    asked = []
    monkeypatch.setattr(peak_flops, "peak_flops", lambda device, **options: asked.append(options["bf16"]) or 2.0)
    assert peak_flops.peak_of_run(CPU, bf16=True, num_processes=4) is None
    assert asked == []
    assert peak_flops.peak_of_run(CUDA, bf16=False, num_processes=4) == 8.0
    assert asked == [False]


def test_a_measured_peak_is_no_less_than_that_of_the_products_that_it_was_measured_by(monkeypatch):
    """A clock that ticks a second at a time: one product a tick."""
    ticks = iter(range(100))
    monkeypatch.setattr(peak_flops.time, "process_time", lambda: float(next(ticks)))
    before = torch.get_rng_state()
    assert peak_flops.peak_flops(CPU, bf16=False, repeats=1) == 2 * 1024**3
    assert torch.equal(torch.get_rng_state(), before)


def test_speeds_of_a_line_that_a_state_cuts_in_two(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_averages.time, "perf_counter", lambda: now[0])
    values, is_finite = torch.ones(4, dtype=torch.float64), torch.tensor(True)
    one = StepAverages(NAMES, CPU, cells_per_step=16, peak_flops=1e6)
    one.add(values, is_finite, 3000)
    now[0] = 2.0
    state = json.loads(json.dumps(one.state()))
    now[0] = 50.0
    other = StepAverages(NAMES, CPU, cells_per_step=16, peak_flops=1e6)
    other.restore(state)
    other.add(values, is_finite, 1000)
    now[0] = 52.0
    speeds = {name: value for name, value in other.take().items() if name in CLOCKED}
    assert speeds == pytest.approx({"cells_per_second": 8.0, "model_flops_per_second": 1000.0, "mfu": 0.001})
    now[0] = 53.0
    assert other.take()["model_flops_per_second"] == 0


def test_a_pause_is_no_time_of_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_averages.time, "perf_counter", lambda: now[0])
    averages = StepAverages(NAMES, CPU, cells_per_step=16)
    averages.add(torch.ones(4, dtype=torch.float64), torch.tensor(True), 3000)
    now[0] = 2.0
    with averages.paused():
        now[0] = 102.0
    now[0] = 104.0
    assert averages.take()["cells_per_second"] == 4.0
