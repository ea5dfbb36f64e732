"""Bytes that real training steps add to this process at most, as the system sees it.

MALLOC_MMAP_THRESHOLD_=65536 python tests/peak_memory.py '{"cells": 32, "bf16": false, "recomputed": false}'
"""

import json
import sys
from pathlib import Path

import torch

from mdsc.config.schema import ObjectiveConfig, TrainConfig
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.model.trunk_block import recompute_blocks
from mdsc.training.memory_estimate import _loss
from mdsc.training.optimizer import make_optimizer

GENES = 256
SHAPE = {"num_genes": 1000, "num_tokens": 32, "hidden_size": 128, "num_layers": 3, "num_heads": 4, "state_size": 16}


def high_water(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main(cells: int, bf16: bool, recomputed: bool) -> None:
    model = MdscModel(MdscConfig(**SHAPE)).train()
    if recomputed:
        recompute_blocks(model)
    optimizer = make_optimizer(model, TrainConfig().train)

    def step(number: int) -> None:
        for _ in range(2):  # micro-batches
            _loss(model, ObjectiveConfig(), number, GENES, bf16, has_pads=False).backward()
        optimizer.step()

    step(1)  # what libraries set up when they are first called; moments and gradients
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water("VmRSS")
    for _ in range(2):
        step(cells)
    print(high_water("VmHWM") - before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(**json.loads(sys.argv[1]))
