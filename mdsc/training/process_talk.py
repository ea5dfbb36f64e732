"""What the processes of a run tell each other beside gradients: text, and who has failed. Nothing is unpickled."""

import json
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from mdsc.errors import UserError

Result = TypeVar("Result")


def text_of_main(accelerator: Accelerator, make: Callable[[], str | None]) -> str | None:
    """What `make()` gives on the main process, on all of them. Its UserError is raised on all of them, too."""
    message = ""
    if accelerator.is_main_process:
        try:
            message = json.dumps({"text": make()})
        except UserError as error:
            message = json.dumps({"error": str(error)})
    data = bytearray(message.encode())
    size = torch.tensor([len(data)], device=accelerator.device)
    broadcast(size)
    sent = torch.zeros(int(size), dtype=torch.uint8, device=accelerator.device)
    if accelerator.is_main_process:
        sent.copy_(torch.frombuffer(data, dtype=torch.uint8))
    broadcast(sent)
    told = json.loads(bytes(sent.tolist()))
    if "error" in told:
        raise UserError(told["error"])
    return told["text"]


def on_main(accelerator: Accelerator, act: Callable[[], Result]) -> Result | None:
    """Let the main process act, and give there what it returns. To be called on all processes.

    Where it raises a UserError, the others do not wait for it: they end with the same exit code.
    """
    result = error = None
    if accelerator.is_main_process:
        try:
            result = act()
        except UserError as found:
            error = found
    if largest(accelerator, int(error is not None)):
        raise error or SystemExit(2)
    return result


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest of the numbers that the processes give."""
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
