"""What to do where memory does not suffice, in one or two lines."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mdsc.config.schema import TrainConfig
from mdsc.errors import UserError


def ways_out(config: TrainConfig, num_processes: int) -> str:
    """Options that take less memory and are not in use yet, those first that change no result."""
    ways = []
    ways.append("--train.batch-size " + ("with a smaller number" if config.train.batch_size == "auto" else "auto"))
    if not config.train.gradient_checkpointing:
        ways.append("--train.gradient-checkpointing")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        several = "--config_file configs/accelerate/fsdp2.yaml of accelerate launch"
        ways.append(f"FSDP2 ({several})" if num_processes > 1 else "FSDP2 on several GPUs")
    ways.append("fewer genes (--data.num-genes) or a smaller model (--model.hidden-size, --model.num-layers)")
    return ", ".join(ways[:-1]) + f"; else {ways[-1]}"


@contextmanager
def told_out_of_memory(config: TrainConfig, num_processes: int) -> Iterator[None]:
    """Turn a failed allocation into a UserError that says what takes less."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        # Of a GPU: what was wanted and how much there is; advice on the allocator comes after that.
        what = ". ".join(str(error).splitlines()[0].split(". ")[:3])
        raise UserError(
            f"out of memory: {what}.\nTry {ways_out(config, num_processes)}. "
            "With --resume auto the run goes on from the last state that was saved."
        ) from error
