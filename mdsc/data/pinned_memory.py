"""Batches in page-locked memory, from which a GPU copies while the host goes on."""

from collections.abc import Iterator
from contextlib import closing

import torch

from mdsc.data.batch import CellBatch


def pinned(batches: Iterator[CellBatch], device: torch.device) -> Iterator[CellBatch]:
    """The same batches, to be made in the thread that is to do the copying; `device` is the GPU they are for.

    The memory is torch's own: it is not given to a later batch before the copies that read it are done.
    """
    torch.cuda.set_device(device)  # of this thread; else it would open a context on the first GPU, too
    with closing(batches):
        for batch in batches:
            yield batch.pinned()
