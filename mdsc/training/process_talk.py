"""What the processes of a run tell each other beside gradients: text, and who has failed. Nothing is unpickled."""

import json
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from mdsc.errors import UserError


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


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest of the numbers that the processes give."""
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
