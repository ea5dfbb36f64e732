"""Seconds and memory of training steps, and the operators that take them."""

import gc
import time
from collections.abc import Sequence

import torch
from train_step_variants import Shape, Variant, make_variant

from mdsc.config.schema import OptimConfig
from mdsc.training.memory_measure import saved_bytes

CLIP_NORM = OptimConfig().clip_norm
WARM_UP = 1
"""Steps after the first one that are not measured."""


class Stepper:
    """A variant with its optimiser."""

    def __init__(self, variant: Variant, device: torch.device):
        self.variant, self.device = variant, device
        self.optimizer = variant.optimizer()

    def step(self) -> None:
        self.variant.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.variant.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        """Of one step: CPU time, which neighbours on a machine lengthen little; on CUDA until the GPU is done."""
        if self.device.type == "cpu":
            start = time.process_time()
            self.step()
            return time.process_time() - start
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        self.step()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def first_seconds(self) -> float:
        """Of the first step, by the clock on the wall: compilers work in other processes."""
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def saved_bytes(self) -> int:
        """What the forward pass keeps for the backward pass, beside the weights."""
        return saved_bytes(self.variant.loss, self.variant.model)


def measure_in_turns(
    names: Sequence[str], shape: Shape, device: torch.device, repeats: int, **options
) -> dict[str, dict]:
    """Variants take turns, so that what disturbs the machine disturbs all of them."""
    torch.compiler.reset()  # after some models of one code torch.compile would leave the next one eager
    steppers = {name: Stepper(make_variant(name, shape, device, **options), device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    first = {name: stepper.first_seconds() for name, stepper in steppers.items()}
    for repeat in range(WARM_UP + repeats):
        for name, stepper in steppers.items():
            taken = stepper.seconds()
            if repeat >= WARM_UP:
                seconds[name].append(taken)
    return {
        name: {
            "seconds": seconds[name],
            "first_seconds": first[name],
            "memory_bytes": stepper.saved_bytes(),
            "trunk": stepper.variant.trunk,
        }
        for name, stepper in steppers.items()
    }


def measure_one(name: str, shape: Shape, device: torch.device, repeats: int, **options) -> dict:
    """Alone on a GPU, so that it has the memory to itself; or why it failed: that is a result of a sweep."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        stepper = Stepper(make_variant(name, shape, device, **options), device)
        first = stepper.first_seconds()
        for _ in range(WARM_UP):
            stepper.step()
        seconds = [stepper.seconds() for _ in range(repeats)]
    except torch.OutOfMemoryError:
        return {"failure": "out of memory"}
    return {
        "seconds": seconds,
        "first_seconds": first,
        "memory_bytes": torch.cuda.max_memory_allocated(device),
        "trunk": stepper.variant.trunk,
    }


def operators(name: str, shape: Shape, device: torch.device, *, bf16: bool, steps: int = 5) -> dict[str, float]:
    """Own seconds of each operator in an eager step, by torch.profiler; on CUDA those of its kernels.

    Nothing where the GPU's memory does not hold an eager step.
    """
    from torch.profiler import ProfilerActivity, profile

    try:
        stepper = Stepper(make_variant(name, shape, device, bf16=bf16), device)
        stepper.step()
    except torch.OutOfMemoryError:
        return {}
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(steps):
            stepper.step()
    clock = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = {event.key: getattr(event, clock) / 1e6 / steps for event in profiler.key_averages()}
    return {key: seconds for key, seconds in found.items() if seconds > 0}
