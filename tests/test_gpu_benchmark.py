"""benchmarks/gpu.py where there is no GPU: what is cut off or fails is told and the rest kept; goals are judged."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu
import gpu_stages
from gpu_tables import goals, text, write_tables
from gpu_training import _told

KEEP = "import json, sys; json.dump({'found': 1}, open(sys.argv[4], 'w'))\n"


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    code = gpu.main(["--dry-run", "--out", str(tmp_path / "out"), *arguments])
    (path,) = (tmp_path / "out").glob("gpu-*.json")
    return code, json.loads(path.read_text())["stages"]


@pytest.mark.slow
def test_a_stage_on_a_cpu(tmp_path: Path):
    code, stages = run(tmp_path, "--stages", "peak", "--minutes", "2")
    assert code == 0
    assert stages["peak"]["bf16"] > 1e8
    assert stages["peak"]["device"] == "CPU"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param(KEEP + "import time; time.sleep(60)", "cut off after", id="hangs"),
        pytest.param(KEEP + "import signal, time\nsignal.signal(15, signal.SIG_DFL)\ntime.sleep(60)", "cut", id="ends"),
        pytest.param(KEEP + "raise RuntimeError('no memory')", "exit code 1: RuntimeError: no memory", id="fails"),
    ],
)
def test_what_a_stage_has_kept_counts_though_it_comes_to_no_good_end(tmp_path, monkeypatch, script: str, words: str):
    (tmp_path / "stage.py").write_text(script)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "stage.py"))
    for name in ("peak", "sweep"):
        monkeypatch.setitem(gpu.STAGES, name, gpu.Stage("gpu_stages", ("torch",), 1.5 / 60))
    code, stages = run(tmp_path, "--stages", "peak", "sweep")
    assert code == 1
    assert words in stages["peak"]["failure"]
    assert stages["peak"]["found"] == 1
    assert stages["sweep"].keys() >= {"found", "seconds"}, "a later stage runs all the same"


def test_where_no_time_is_left_a_stage_is_not_begun(tmp_path: Path):
    code, stages = run(tmp_path, "--minutes", "0.01", "--stages", "peak", "tests")
    assert code == 1
    assert {told["failure"] for told in stages.values()} == {"no time was left"}


def test_what_lacks_is_told_with_a_way_to_bring_it(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "_is_there", lambda module: module not in ("tyro", "yaml"))
    monkeypatch.setattr(gpu, "run_stage", lambda name, *_: {"seconds": 0.0, "ran": name})
    _, stages = run(tmp_path, "--stages", "peak", "loader", "attention")
    said = capsys.readouterr().out
    assert "sh benchmarks/gpu_wheels.sh wheels tyro docstring-parser typeguard pyyaml" in said
    assert "these stages are left out: loader, attention" in said
    assert stages["peak"]["ran"] == "peak"
    assert stages["loader"]["failure"] == "lacks yaml, tyro"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_is_measured_by_mistake(tmp_path: Path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_newest_measurement_of_a_stage_counts(tmp_path: Path):
    def write(name: str, dry_run: bool = False, **stages: dict) -> None:
        (tmp_path / f"gpu-{name}.json").write_text(json.dumps({"dry_run": dry_run, "stages": stages}))

    write("1", peak={"bf16": 1.0, "time": "a"}, sweep={"runs": [1]})
    write(
        "2", peak={"bf16": 2.0, "time": "b"}, sweep={"failure": "no time was left", "time": "b"}, tests={"failure": "x"}
    )
    found = gpu.merged(tmp_path)
    assert found["stages"] == {"peak": {"bf16": 2.0, "time": "b"}, "sweep": {"runs": [1]}, "tests": {"failure": "x"}}
    write("3", dry_run=True)
    with pytest.raises(SystemExit, match="a folder of its own"):
        gpu.merged(tmp_path)


def step(size: str, name: str, mode: str, seconds: float) -> dict:
    """One layer of width 10 on 10 cells of 5 genes: 10 * 5 * (6 * 100 + 12 * 5 * 10) = 60,000 operations."""
    shape = {"layers": 1, "width": 10, "genes": 5, "cells": 10}
    setting = {"size": size, "name": name, "mode": mode, "precision": "bf16", "attention": "sdpa"}
    return setting | {"shape": shape, "trunk": 100, "seconds": [seconds] * 3, "memory_bytes": 2**20}


def measured() -> dict:
    ours, theirs = "mdsc, whole step", "reference DiT (MDLM)"
    runs = [
        step("base", theirs, "eager", 2.4), step("base", ours, "eager", 2.0), step("base", ours, "compiled", 1.2),
        step("large", theirs, "eager", 1.5), step("large", ours, "compiled", 1.25),
        step("xl", ours, "eager", 1.0) | {"failure": "out of memory"},
    ]  # fmt: skip
    del runs[-1]["seconds"]
    trial = {"verdict": "works", "error": 0.01, "gradient_error": 0.01, "seconds": 1.0}
    watched = [
        {"seconds": float(second), "gpu_mib": 100.0 + (second > 60), "resident_mib": 10.0 + second}
        for second in range(90)
    ]
    steady = {
        "steps": 900, "training_seconds": 1300.0, "skipped_steps": 0, "lines_that_are_not_finite": 1,
        "loss_of_first_quarter": 2.0, "loss_of_last_quarter": 1.5, "watched": watched,
    }  # fmt: skip
    return {
        "sizes": {"runs": runs, "failures": [], "peak": 1e5},
        "attention": {"trials": {"a": trial, "b": trial | {"verdict": "wrong: outputs"}}, "tolerance": 0.03},
        "stability": steady,
    }


def test_goals_are_judged_by_what_was_measured():
    rows = {row[0]: row[2:] for row in goals(measured()).rows}
    assert rows["MFU of base"] == ("50.0%", "yes")
    assert rows["MFU of large"] == ("48.0%", "**no**")
    assert rows["MFU of xl"] == ("not measured", "-")
    assert rows["base over the reference, which is eager"] == ("2.00", "yes")
    assert rows["large over the reference, which is eager"] == ("1.20", "**no**")
    assert rows["base over the reference, both compiled"] == ("not measured", "-")
    assert rows["attention kernels agree"] == ("2 ran, 1 wrong", "no")
    assert rows["steady training"] == ("21.7 minutes, 900 steps", "yes")
    assert rows["steps that were not finite"] == ("1", "**no**")
    assert rows["loss, first and last quarter"][1] == "yes"
    assert rows["memory, gpu_mib, later two thirds"][1] == "yes"
    assert rows["memory, resident_mib, later two thirds"][1] == "**no**"
    assert {row[2] for row in goals({}).rows} == {"not measured"}


def test_tables_stand_behind_what_was_written_by_hand(tmp_path: Path):
    path = tmp_path / "gpu.md"
    path.write_text("# On a GPU\n\nBy hand.\n\n## Measured\n\nold\n")
    write_tables(path, {"dry_run": False, "stages": measured()})
    found = path.read_text()
    assert found.startswith("# On a GPU\n\nBy hand.\n\n## Measured\n\n")
    assert "old" not in found
    assert "| xl: mdsc, whole step | 10 | bf16 eager sdpa | out of memory | - | - | - | - |" in found
    assert "dry run" in "".join(text({"dry_run": True, "stages": {}}))


def test_steady_training_is_told_from_what_the_run_has_left(tmp_path: Path):
    lines = [
        {"step": 10 * number, "loss": 3.0 - number, "nll": 1.0, "skipped_steps": 0, "loss_spikes": 1,
         "cells_per_second": 40.0, "model_flops_per_second": 5.0} for number in range(1, 9)
    ]  # fmt: skip
    lines[3]["nll"] = None
    lines.insert(2, {"step": 15, "event": "loss_spike", "loss": 9.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    starts = [{"from_step": step, "options": {"train": {"global_batch_size": 20}}} for step in (0, 40)]
    (tmp_path / "run.json").write_text(json.dumps({"starts": starts}))
    told = _told(tmp_path, "base", [])
    assert (told["steps"], told["lines_that_are_not_finite"], told["started_from"]) == (80, 1, [0, 40])
    assert (told["loss_of_first_quarter"], told["loss_of_last_quarter"]) == (1.5, -4.5)
    assert told["training_seconds"] == 80 * 20 / 40
    assert told["mfu"] is None


def test_a_part_that_fails_does_not_take_the_others_with_it(tmp_path: Path, monkeypatch):
    import train_step_measure

    def measured_in_turns(names, shape, device, repeats, **options):
        if options["compiled"]:
            raise RuntimeError("the compiler gave up\nat length")
        return {names[0]: {"seconds": [1.0], "trunk": 5, "memory_bytes": 0}}

    monkeypatch.setattr(train_step_measure, "measure_in_turns", measured_in_turns)
    kept = []
    plan = gpu_stages.Plan("cpu", True, str(tmp_path), 0.0)
    found = gpu_stages.sizes(plan, lambda result: kept.append(len(result["runs"])))
    told = [(run["name"].split()[0], run["mode"], run.get("failure")) for run in found["runs"]]
    gave_up = "RuntimeError: the compiler gave up"
    assert told[:2] == [("reference", "compiled", gave_up), ("mdsc,", "compiled", gave_up)]
    assert told[2:] == [("reference", "eager", None), ("mdsc,", "eager", None)]
    assert len(found["failures"]) == 2
    assert kept == [1, 2, 3, 4]
