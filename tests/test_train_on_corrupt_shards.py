"""A flipped bit that a run meets after its start: exit code 2 and the name, or a record; never a hang."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from forked_runs import ForkServer
from run_files import differences
from simulated_shards import simulated_counts, write_shards
from tiny_run import NUM_GENES, flags, tiny_config

import mdsc
from mdsc.checkpoint import load_checkpoint
from mdsc.cli import main
from mdsc.data.loader import CellLoader
from mdsc.data.mixed_plan import MixedOrder
from mdsc.data.quarantine import FILE_NAME
from mdsc.data.tokenizers import make_tokenizer
from mdsc.data.validation_split import some_validation_rows
from mdsc.training import masked_run
from mdsc.training.state_files import state_folder
from mdsc.training.tracking import read_metrics

ROOT = Path(mdsc.__file__).parent.parent
# The statistics at the start take few cells here, as they do of a large data set. RANK 1 may have a folder of its own.
DRIVER = """
import os, sys
from functools import partial
from mdsc.cli import exit_with
from mdsc.training import command, masked_run
if __name__ == "__main__":
    masked_run.shard_statistics = partial(masked_run.shard_statistics, max_cells=20)
    if os.environ.get("RANK") == "1" and "OTHER_FOLDER" in os.environ:
        sys.argv += ["--data.dir", os.environ["OTHER_FOLDER"]]
    exit_with(lambda: command.main(sys.argv[1:]))
"""
LIMIT = 240
"""Seconds; a hang is longer."""
OPTIONS = ("--data.window", "1", "--validation.num-cells", "8", "--train.save-every", "10")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`shards` is whole; in `damaged` a bit is flipped in the file of 12 that process 1 of 2 meets the latest."""
    place = tmp_path_factory.mktemp("corrupt")
    folder = write_shards(place / "shards", simulated_counts(240, NUM_GENES, mean=2.0), cells_per_shard=20)
    shutil.copytree(place / "shards", place / "damaged")
    config = tiny_config(place)
    settings = replace(config.data, window=1)
    loader = CellLoader(folder, make_tokenizer("rank"), settings, seed=config.seed, global_batch_size=16)
    order, refs = MixedOrder(loader.plan), loader.plan.row_groups
    read_first = {ref.file for ref in some_validation_rows(refs, 0.2, 8)} | {refs[6].file}
    first_step = {}
    for step in range(loader.steps_per_epoch):
        for lane in (1, 3):
            for number in order.turn(step, lane).cells.group.tolist():
                first_step.setdefault(refs[number].file, step)
    name = max(first_step.keys() - read_first, key=first_step.get)
    assert 3 <= first_step[name] < 12, "met after some steps, and in the first epoch"
    content = bytearray((place / "damaged" / name).read_bytes())
    content[60] ^= 8
    (place / "damaged" / name).write_bytes(content)
    (place / "train_damaged.py").write_text(DRIVER)
    (place / "name").write_text(name)
    return place


def arguments(place: Path, output: str, folder: str, *options: str) -> list[str]:
    config = tiny_config(place, max_steps=14)
    config = replace(config, data=replace(config.data, dir=str(place / folder)), output_dir=str(place / output))
    return [*flags(config), *OPTIONS, *options]


def two_processes(place: Path, output: str, folder: str, *options: str, **environment: str):
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    line = [sys.executable, *launch, str(place / "train_damaged.py"), *arguments(place, output, folder, *options)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(line, cwd=place, env=env, capture_output=True, text=True, timeout=LIMIT)


def tells(place: Path, text: str, process: str = "") -> bool:
    return f"error{process}: {place / 'damaged' / (place / 'name').read_text()}, row group 0: its bytes" in text


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


@pytest.fixture
def few_statistics(monkeypatch):
    """As in DRIVER."""
    monkeypatch.setattr(masked_run, "shard_statistics", partial(masked_run.shard_statistics, max_cells=20))


@pytest.mark.parametrize("prefetch", ["0", "2"])
def test_one_process_ends_with_the_name(place: Path, prefetch: str, capsys, few_statistics):
    before = threading.active_count()
    assert main(["train", *arguments(place, "one", "damaged", "--data.prefetch", prefetch)]) == 2
    error = capsys.readouterr().err
    assert tells(place, error), error
    assert len(losses(place / "one")) >= 3, "it was met in mid-training"
    assert threading.active_count() <= before


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def test_two_processes_end_with_the_name_where_one_meets_it(place: Path, server: ForkServer):
    """Process 0 has a whole folder, and would wait for ever for the other's gradients."""
    line = arguments(place, "forked", "shards", "--data.prefetch", "2")
    run = server.start(place, line, OTHER_FOLDER=str(place / "damaged"), STATISTICS_CELLS="20")
    codes = run.wait()
    assert codes[1] == 2
    assert codes[0], "a process that has lost its partner ends, too"
    assert tells(place, run.said(), " (process 1)"), run.said()
    assert len(losses(place / "forked")) >= 3


@pytest.mark.slow
def test_so_do_workers_and_a_launcher(place: Path):
    options = ("--data.prefetch", "2", "--data.workers", "2")
    done = two_processes(place, "two", "shards", *options, OTHER_FOLDER=str(place / "damaged"))
    assert tells(place, done.stderr, " (process 1)"), done.stderr
    # Of process 0, which has lost its partner, the launcher may hear first; it says 1 of all that fails.
    assert done.returncode == 1
    assert len(losses(place / "two")) >= 3


def test_a_quarantined_run_is_the_same_on_two_processes_and_is_recorded(
    place: Path, server: ForkServer, capsys, few_statistics
):
    options = ("--data.on-corrupt", "quarantine", "--data.prefetch", "2")
    assert main(["train", *arguments(place, "alone", "damaged", *options)]) == 0
    alone = capsys.readouterr().out
    both = server.finish(place, arguments(place, "both", "damaged", *options), STATISTICS_CELLS="20")
    name = (place / "name").read_text()
    for run, said in ((place / "alone", alone), (place / "both", both)):
        events = [line for line in read_metrics(run) if "event" in line]
        assert [(event["event"], event["file"], event["group"]) for event in events] == [("quarantined", name, 0)]
        assert said.count(f"warning: {name}, row group 0, is quarantined: its bytes are not") == 1
        (kept,) = load_checkpoint(run).quarantined
        assert {"step": events[0]["step"], "event": "quarantined", **asdict(kept)} == events[0]
        assert (run / "loss.png").is_file()
    assert (place / "alone" / FILE_NAME).read_text() == (place / "both" / FILE_NAME).read_text()
    assert losses(place / "both") == pytest.approx(losses(place / "alone"), rel=1e-5)


def test_a_resumed_run_keeps_what_it_has_quarantined(place: Path, few_statistics, capsys):
    """The file is mended while the run is down: its cells stay replaced, and nothing is told twice."""
    options = ("--data.on-corrupt", "quarantine", "--train.save-every", "13")
    assert main(["train", *arguments(place, "whole", "damaged", *options)]) == 0
    shutil.copytree(place / "whole", place / "resumed")
    shutil.rmtree(state_folder(place / "resumed", 14))
    shutil.copytree(place / "damaged", place / "mended")
    name = (place / "name").read_text()
    shutil.copy(place / "shards" / name, place / "mended" / name)
    capsys.readouterr()
    assert main(["train", *arguments(place, "resumed", "mended", *options, "--resume", "auto")]) == 0
    assert "quarantined" not in capsys.readouterr().out
    assert differences(place / "whole", place / "resumed") == []
    assert len([line for line in read_metrics(place / "resumed") if "event" in line]) == 1


def test_a_run_without_corruption_leaves_no_record(place: Path, few_statistics):
    (place / "clean").mkdir()
    (place / "clean" / FILE_NAME).write_text("[]")  # of an earlier run
    assert main(["train", *arguments(place, "clean", "shards", "--data.on-corrupt", "quarantine")]) == 0
    assert not (place / "clean" / FILE_NAME).exists()
    assert load_checkpoint(place / "clean").quarantined == ()
