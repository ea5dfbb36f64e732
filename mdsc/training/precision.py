"""Whether a run computes in bf16."""

import torch

from mdsc.model.bf16 import computes_bf16


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether `train.precision` means bf16 autocast on this device."""
    return precision == "bf16" or (precision == "auto" and computes_bf16(device))
