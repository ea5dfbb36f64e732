"""Worker processes of the loader: torch's DataLoader deals out the steps, each worker computes the part of its lanes.

Parts go through pipes as numpy arrays of some 3 bytes a gene, so that neither the size of /dev/shm nor the number of
open files limits them. Workers are forked from a server process that has done the imports and runs no thread: a fork of
the training process itself could inherit a lock of torch or CUDA that nobody is left to open.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from threading import Thread, Timer

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mdsc.data.dense_cells import DenseCells
from mdsc.errors import UserError

TOLD_BY_TORCH = "exited unexpectedly"
GRACE = 30.0
"""Seconds that a worker lives on after SIGTERM; a scheduler or launcher sends it to all processes at once."""


PartsOfLanes = Callable[[Sequence[int], int], Iterator[DenseCells]]
"""(lanes, first step) -> their part of that step, of the next, ...; it is sent to each worker."""


def parts_of_workers(
    compute: PartsOfLanes, lanes: Sequence[int], start_step: int, *, num_workers: int, depth: int
) -> Iterator[DenseCells]:
    """Parts 0 .. W-1 of step `start_step`, then those of the next, ...: part w is of lanes[w::W].

    Each worker is at most `depth` steps ahead (1 at least). A UserError of a worker is raised here as it is. A worker
    that was killed is told, too, as a UserError, within seconds. All workers have ended when this is closed.
    """
    with warnings.catch_warnings():
        # How many workers pay depends on the storage too; that is for who chose their number.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        steps = DataLoader(
            _WorkerParts(compute, lanes, start_step),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=max(depth, 1),
            collate_fn=_as_it_is,
            worker_init_fn=_prepare_worker,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # else a seed would be drawn from the generator of the training
        )
        parts = iter(steps)
    try:
        while True:
            part = next(parts)
            if isinstance(part, UserError):
                raise part
            yield part
    except RuntimeError as error:
        if TOLD_BY_TORCH not in str(error):
            raise
        raise UserError(
            "a process that reads training cells was killed, perhaps for want of memory: "
            "lower --data.workers, --data.window or --data.prefetch, or ask for more memory."
        ) from error
    finally:
        parts._shutdown_workers()  # now, and not when the last traceback that holds them is let go


class _WorkerParts(IterableDataset):
    """The steps as one worker computes them."""

    def __init__(self, compute: PartsOfLanes, lanes: Sequence[int], start_step: int):
        self.compute = compute
        self.lanes = lanes
        self.start_step = start_step

    def __iter__(self) -> Iterator[DenseCells | UserError]:
        worker = get_worker_info()
        try:
            yield from self.compute(self.lanes[worker.id :: worker.num_workers], self.start_step)
        except UserError as error:
            yield error  # torch would raise it with a traceback for a message


def _context() -> multiprocessing.context.BaseContext:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pyarrow.parquet", "numba", "mdsc.data.loader"])  # if they are there
    return context


def _prepare_worker(_: int) -> None:
    # Both are for the training process, which may need some more steps before it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    # Workers are many, so that each has one thread; torch's DataLoader has told torch already.
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    # torch's own watch is on the server process, which lives as long as its workers do.
    Thread(target=_end_with_the_training_process, daemon=True).start()


def _end_later(*_) -> None:
    timer = Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _end_with_the_training_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _as_it_is(part: DenseCells) -> DenseCells:
    return part
