"""Stop at any step and go on with other numbers of processes and workers: no token changes, no cell is lost."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from simulated_shards import simulated_counts, write_shards

from mdsc.config.schema import DataConfig
from mdsc.data.batch import CellBatch
from mdsc.data.condition_levels import condition_levels
from mdsc.data.loader import CellLoader
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.errors import UserError

NUM_CELLS, NUM_GENES, NUM_LANES, BATCH = 700, 60, 12, 48
SETTINGS = DataConfig(num_genes=NUM_GENES, num_lanes=NUM_LANES, window=2, validation_fraction=0.1)
EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ShardFolder:
    """Column 0 is the cell's own number, so that a batch over all genes tells which cells it has."""
    counts = simulated_counts(NUM_CELLS, NUM_GENES).toarray()
    counts[:, 0] = 1 + np.arange(NUM_CELLS)
    return write_shards(tmp_path_factory.mktemp("cells") / "shards", csr_matrix(counts), cells_per_shard=90)


def make_loader(folder: ShardFolder, *, rank: int = 0, world_size: int = 1, **settings) -> CellLoader:
    return CellLoader(
        folder,
        make_tokenizer("rank"),
        replace(SETTINGS, **settings),
        seed=3,
        global_batch_size=BATCH,
        rank=rank,
        world_size=world_size,
        levels=condition_levels(folder, ("drug",)),
    )


def digest(batch: CellBatch) -> dict[int, bytes]:
    """What each place of the global batch holds."""
    columns = [batch.gene_ids, batch.counts.long(), batch.tokens, batch.is_pad.long()]
    rows = torch.cat([*columns, batch.fold[:, None], batch.categories["drug"][:, None]], dim=1)
    places = batch.cell_index.tolist()
    return dict(zip(places, (row.numpy().tobytes() for row in rows), strict=True))


def steps(folder: ShardFolder, number: int, *, start: int = 0, world_size: int = 1, workers: int = 0, **settings):
    """The global batches of all ranks, joined, as what each place holds."""
    joined = [{} for _ in range(number)]
    for rank in range(world_size):
        loader = make_loader(folder, rank=rank, world_size=world_size, workers=workers, **settings)
        batches = loader.iterate(start)
        for step, batch in enumerate(islice(batches, number)):
            assert len(batch) == BATCH // world_size
            assert batch.cell_index.tolist() == sorted(batch.cell_index.tolist())
            joined[step] |= digest(batch)
        batches.close()
    assert all(len(step) == BATCH for step in joined)
    return joined


@pytest.fixture(scope="module")
def straight(folder) -> list[dict]:
    return steps(folder, EPOCHS * make_loader(folder).steps_per_epoch)


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [(2, 0), (3, 0), (4, 0), (1, 1), (1, 2), (3, 2)],
    ids=lambda number: str(number),
)
def test_three_epochs_are_the_same_for_all_processes_and_workers(folder, straight, world_size, workers):
    assert steps(folder, len(straight), world_size=world_size, workers=workers) == straight


def test_each_training_cell_comes_once_an_epoch(folder):
    """But for those that do not fill a last global batch."""
    loader = make_loader(folder, workers=2)
    batches = loader.iterate()
    for _ in range(EPOCHS):
        seen = [int(n) for batch in islice(batches, loader.steps_per_epoch) for n in batch.counts[:, 0]]
        assert len(seen) == len(set(seen)) == loader.plan.num_cells // BATCH * BATCH
    batches.close()


def test_stopping_twice_and_going_on_with_other_numbers(folder, straight):
    first, second = sorted(np.random.default_rng(5).choice(np.arange(1, len(straight) - 1), 2, replace=False).tolist())
    run = steps(folder, first, world_size=2)
    run += steps(folder, second - first, start=first, world_size=3, workers=0)
    run += steps(folder, len(straight) - second, start=second, world_size=1, workers=2)
    assert run == straight
    again = steps(folder, len(straight) - second, start=second, world_size=4)
    assert again == straight[second:]


def test_cells_with_genes_of_their_own_are_the_same_from_workers(folder):
    alone = steps(folder, 3, gene_draw="expressed", num_genes=20)
    assert steps(folder, 3, gene_draw="expressed", num_genes=20, workers=2) == alone


def test_workers_take_nothing_from_the_generator_of_the_training(folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    steps(folder, 1, workers=1)
    assert torch.rand(1) == expected


def test_numpy_and_numba_give_the_same(folder, straight, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("MDSC_NUMBA", "0")
    assert steps(folder, len(straight)) == straight
    expressed = steps(folder, 2, gene_draw="expressed", num_genes=20)
    monkeypatch.delenv("MDSC_NUMBA")
    assert steps(folder, 2, gene_draw="expressed", num_genes=20) == expressed


def test_more_workers_than_lanes(folder):
    make_loader(folder, world_size=4, workers=3)
    with pytest.raises(UserError, match=r"--data.workers 4 is more than the 3 lanes of a process"):
        make_loader(folder, world_size=4, workers=4)


def test_breaking_off_ends_the_workers(folder):
    for _ in islice(make_loader(folder, workers=2).iterate(), 2):
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_an_error_of_a_worker_is_the_same_error(folder, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder.path, broken)
    for file in broken.glob("train-*.parquet"):
        size = file.stat().st_size
        file.write_bytes(file.read_bytes()[: size // 4] + bytes(size - size // 4))
    messages = []
    for workers in (0, 2):
        with pytest.raises(UserError) as caught:
            next(make_loader(ShardFolder.open(broken), workers=workers, condition_columns=()).iterate())
        messages.append(str(caught.value))
    assert "row group 0: it does not end as a parquet file does" in messages[1]
    assert "Traceback" not in messages[1]
    assert len(messages[1].splitlines()) <= 2
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_told(folder):
    batches = make_loader(folder, workers=2, prefetch=1).iterate()
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"was killed.*\s*lower --data.workers"):
        list(islice(batches, 100))
    assert time.monotonic() - started < 20
    assert not multiprocessing.active_children()


SCRIPT = """
import signal, sys, time, multiprocessing
from test_loader_elastic import make_loader
from mdsc.data.shards import ShardFolder
if __name__ == "__main__":
    # A shell's background job ignores Ctrl-C, and so do all that it starts, these tests among them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    batches = make_loader(ShardFolder.open(sys.argv[1]), workers=2).iterate()
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "wait":
        while True:
            next(batches)
            time.sleep(0.01)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, None], ids=["ctrl-c", "killed", "just ends"])
def test_no_process_is_left_over(folder, tmp_path: Path, end):
    """Ctrl-C goes to all processes at the terminal; a kill goes to the training process alone."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, str(script), str(folder.path), "wait" if end else "end"]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True, env=environment) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        if end == signal.SIGINT:
            os.killpg(process.pid, end)
        elif end:
            process.kill()
        try:
            _, complaints = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives the run"
        time.sleep(0.1)
    if end == signal.SIGINT:
        assert complaints.count("Traceback") == 1, complaints  # the training process's own
    if end is None:
        assert not complaints
