"""--train.compile: each block of the network by torch.compile, and nothing else.

All blocks have one code and one shape, so that one graph serves them all; compiling the whole model took several times
as long and made no faster step (docs/results/train_step.md). Across processes, gradients of a block are on their way
while the next one's are computed. Modules are compiled in place: names of weights stay.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from mdsc.config.schema import OptimConfig, TrainConfig
from mdsc.errors import UserError
from mdsc.model.trunk_block import compile_blocks, recompute_blocks


def set_up_blocks(model: nn.Module, options: OptimConfig) -> None:
    """What --train.compile and --train.gradient-checkpointing ask for; in place."""
    if options.gradient_checkpointing:
        recompute_blocks(model)
    if options.compile:
        compile_blocks(model)


def uncompiled(config: TrainConfig) -> AbstractContextManager:
    """Within, blocks run as they are: for passes with other shapes, or without gradients, which would compile anew."""
    # Without a compiler flex_attention would hold all products of queries and keys.
    if not config.train.compile or config.model.attention == "flex_attention":
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def require_compiler(device_type: str) -> None:
    """UserError where the compiler that torch.compile calls is not there."""
    variable, compiler, what = ("CC", "gcc", "C") if device_type == "cuda" else ("CXX", "g++", "C++")
    name = os.environ.get(variable, compiler).split()[0]
    if shutil.which(name) is None and not (device_type == "cuda" and shutil.which("clang")):
        raise UserError(
            f"--train.compile needs a {what} compiler, and there is no {name} here: install one, name one by "
            f"{variable}, or leave the option out."
        )


@contextmanager
def told_failed_compilation(config: TrainConfig) -> Iterator[None]:
    """Turn a compiler's failure into a UserError."""
    if not config.train.compile:
        yield
        return
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        first_line = (str(cause).strip().splitlines() or [""])[0]
        raise UserError(
            f"--train.compile: torch.compile has failed ({type(cause).__name__}: {first_line}).\n"
            "Leave the option out: the results are the same."
        ) from error
