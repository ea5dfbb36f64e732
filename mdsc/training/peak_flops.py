"""How fast a device multiplies matrices: what the arithmetic of a training step is compared with (MFU)."""

import time

import torch


def peak_flops(device: torch.device, *, bf16: bool, repeats: int = 7) -> float:
    """Floating-point operations a second of a large product of square matrices, the best of `repeats`.

    float32 is multiplied as torch is told to here (`torch.set_float32_matmul_precision`), as training does. On a CPU
    it is CPU time that counts.
    """
    on_gpu = device.type == "cuda"
    size, products = (8192, 10) if on_gpu else (1024, 1)
    dtype = torch.bfloat16 if bf16 else torch.float32
    generator = torch.Generator(device).manual_seed(0)  # no draw from the generator of the run
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = []
    for _ in range(repeats + 1):
        start = _settled(clock, device)
        for _ in range(products):
            left @ right
        seconds.append((_settled(clock, device) - start) / products)
    del left, right
    if on_gpu:
        torch.cuda.empty_cache()
    return 2 * size**3 / min(seconds[1:])


def peak_of_run(device: torch.device, *, bf16: bool, num_processes: int) -> float | None:
    """That of all GPUs of a run, which are taken to be alike: some seconds at most. None on a CPU, where it would take
    longer than it tells."""
    return num_processes * peak_flops(device, bf16=bf16, repeats=3) if device.type == "cuda" else None


def _settled(clock, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
