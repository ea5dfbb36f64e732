"""--train.batch-size auto: the largest micro-batch that fits, found before the first step; and what it takes, told.

On a GPU sizes are tried, from the one that the estimate gives: a forward and backward pass of the whole network, beside
gradients, moments, and a margin. On a CPU there is no failed allocation to learn from, as the system hands out more
than it has and kills who uses it: there the estimate decides, and a size above CPU_CELLS would gain nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mdsc.data.batch import CellBatch
from mdsc.errors import UserError
from mdsc.training.compiled_blocks import uncompiled
from mdsc.training.memory_available import available_bytes
from mdsc.training.memory_errors import ways_out
from mdsc.training.memory_estimate import MemoryEstimate, bytes_in_words, estimate_memory, holds_averages
from mdsc.training.process_talk import largest
from mdsc.training.sharding import is_sharded
from mdsc.training.trainer import Trainer

CPU_CELLS = 32
"""More at once are not faster there: docs/results/train_step.md."""
CPU_SHARE = 0.5
"""Of the memory that is free. The allocator of the C library keeps up to half as much again as is in use."""
GPU_SHARE = 0.92
"""Of the memory that is free. The rest is for buffers of kernels and of communication, and for torn blocks."""


def settle_batch_size(trainer: Trainer, say: Callable[[str], None]) -> None:
    """Set the trainer's micro-batch where it is left to us, and tell what training takes. On all processes at once.

    Weights, moments and all that is drawn stay as they are: the run is the one that gives this size by its number.
    UserError where not even one cell fits.
    """
    accelerator, config = trainer.accelerator, trainer.config
    room = available_bytes(trainer.device, _local_processes(accelerator.num_processes)) + _held(trainer)
    if config.train.batch_size == "auto":
        sizes = [size for size in range(1, trainer.micro_batch_size + 1) if trainer.micro_batch_size % size == 0]
        trainer.micro_batch_size = _found(trainer, sizes, room)
    if accelerator.is_main_process:
        say(_told(trainer, estimate_of(trainer, trainer.micro_batch_size), room))


def largest_that_fits(sizes: Sequence[int], start: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of `sizes` (ascending) that was seen to fit; None where the smallest does not.

    From `start`, a guess, sizes are halved until one fits; from there the next larger ones are tried until one does
    not. None is tried twice, and none that is larger than one that did not fit.
    """
    place, limit = sizes.index(start), len(sizes)
    while not fits(sizes[place]):
        if place == 0:
            return None
        limit = place
        place = max((i for i in range(place) if 2 * sizes[i] <= sizes[place]), default=0)
    while place + 1 < limit and fits(sizes[place + 1]):
        place += 1
    return sizes[place]


def estimate_of(trainer: Trainer, cells: int) -> MemoryEstimate:
    """For the whole network: steps of the pathway alone take less."""
    return estimate_memory(
        trainer.model.config,
        trainer.config,
        trainer.device,
        cells=cells,
        genes=_num_genes(trainer),
        uses_bf16=trainer.uses_bf16,
        shards=_num_shards(trainer),
    )


def trial_fits(trainer: Trainer, cells: int, reserve: int = 0) -> bool:
    """Whether a forward and backward pass on `cells` cells finds its memory, with `reserve` bytes to spare.

    Its gradients are dropped; what it hides and drops out is keyed, so that no generator has moved.
    """
    train, device = trainer.config.train, trainer.device
    step = max(trainer.done, min(train.pathway_steps, train.max_steps - 1))  # the blocks take part, if they ever do
    try:
        with _room_taken(trainer, reserve), uncompiled(trainer.config):
            batch = _blank_cells(cells, _num_genes(trainer), device)
            trainer.task.receive(batch)
            trainer.task.losses(trainer.model, step, batch)["loss"].sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        fits = False  # no more here: while the error is handled it holds what it could not add to
    else:
        fits = True
    trainer.optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


@contextmanager
def _room_taken(trainer: Trainer, reserve: int) -> Iterator[None]:
    """Hold what a later step will: gradients of earlier micro-batches, moments still to come, and `reserve` bytes."""
    held = [torch.empty(reserve, dtype=torch.uint8, device=trainer.device)]
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
        if parameter not in trainer.optimizer.state:
            held += [torch.empty_like(parameter) for _ in range(2)]
    yield
    del held


def _found(trainer: Trainer, sizes: Sequence[int], room: int) -> int:
    """The size for all processes: that of the one with the least memory."""
    accelerator = trainer.accelerator
    is_tried, share = _is_tried(trainer), CPU_SHARE if trainer.device.type == "cpu" else GPU_SHARE
    # The most that is alive is a convex function of the number of cells: it lies below this line.
    first, last = estimate_of(trainer, sizes[0]), estimate_of(trainer, sizes[-1])
    each = (last.total - first.total) / max(last.cells - first.cells, 1)

    def is_expected_to_fit(cells: int) -> bool:
        return cells == 1 or first.total + each * (cells - 1) <= share * room

    def fits(cells: int) -> bool:
        if is_tried:
            here = trial_fits(trainer, cells, reserve=int((1 - share) * room))
        else:
            here = is_expected_to_fit(cells) and first.total <= room
        return _smallest(trainer, int(here)) == 1

    if trainer.device.type == "cpu":
        sizes = [size for size in sizes if size <= CPU_CELLS]
    start = _smallest(trainer, max(size for size in sizes if is_expected_to_fit(size)))
    found = largest_that_fits(sizes, start, fits)
    if found is None:
        raise UserError(
            f"--train.batch-size auto: not even one cell of {_num_genes(trainer):,} genes fits into the "
            f"{bytes_in_words(room)} of {trainer.device} ({first}).\n"
            f"Try {ways_out(trainer.config, accelerator.num_processes)}."
        )
    return found


def _told(trainer: Trainer, estimate: MemoryEstimate, room: int) -> str:
    is_auto = trainer.config.train.batch_size == "auto"
    text = f"memory: {estimate} of {bytes_in_words(room)} on {trainer.device}"
    if is_auto:
        share = trainer.config.train.global_batch_size // trainer.accelerator.num_processes
        text += f" (--train.batch-size auto: {estimate.cells:,} of {share:,} cells at once)"
    elif estimate.total > room:
        text += f"; it may not suffice: try {ways_out(trainer.config, trainer.accelerator.num_processes)}"
    return text


def _blank_cells(cells: int, genes: int, device: torch.device) -> CellBatch:
    """Without any zero: the latent backbone takes most of these; to others it is all one what cells hold."""
    gene_ids = torch.arange(genes, device=device).repeat(cells, 1)
    ones = torch.ones_like(gene_ids)
    index = torch.arange(cells, device=device)
    return CellBatch(
        gene_ids=gene_ids,
        counts=ones.int(),
        tokens=ones,
        is_pad=torch.zeros_like(gene_ids, dtype=torch.bool),
        cell_index=index,
        fold=torch.zeros_like(index),
    )


def _num_genes(trainer: Trainer) -> int:
    return min(trainer.config.data.num_genes, trainer.model.config.num_genes)


def _held(trainer: Trainer) -> int:
    """Bytes of the estimate that are allocated already."""
    moments = (value for state in trainer.optimizer.state.values() for value in state.values())
    averaged = trainer.parameters if holds_averages(trainer.config, trainer.device) else ()  # as many
    held = sum(tensor.nbytes for tensor in (*trainer.parameters, *averaged, *trainer.model.buffers(), *moments))
    return held // _num_shards(trainer)


def _is_tried(trainer: Trainer) -> bool:
    """Not where weights are sharded: processes would wait for one whose memory has not sufficed."""
    return trainer.device.type == "cuda" and not is_sharded(trainer.model)


def _num_shards(trainer: Trainer) -> int:
    return trainer.accelerator.num_processes if is_sharded(trainer.model) else 1


def _smallest(trainer: Trainer, number: int) -> int:
    return -largest(trainer.accelerator, -number)


def _local_processes(num_processes: int) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
