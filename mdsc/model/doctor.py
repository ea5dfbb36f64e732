"""`mdsc doctor`: which versions, devices and attention implementations a run would find on this machine."""

import importlib.metadata
import platform
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mdsc.errors import UserError
from mdsc.model.attention import BACKENDS, missing
from mdsc.model.attention_trial import AttentionTrial
from mdsc.model.bf16 import computes_bf16

PACKAGES = ("mdsc", "torch", "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "anndata", "tyro")
# Optional package -> what it is for and how it comes.
OPTIONAL = {
    "scanpy": "the embedded cells: pip install 'mdsc[demo]'",
    "flash-attn": "--model.attention flash_attention_2; never needed",
    "wandb": "--tracking.wandb: pip install 'mdsc[wandb]'",
    "tensorboard": "--tracking.tensorboard: pip install 'mdsc[tensorboard]'",
}
# Cells, genes and width of what attention is tried on. An odd number of genes: not every kernel takes one.
SHAPES = {"cuda": {"cells": 8, "genes": 1023, "width": 768}}
SMALL_SHAPE = {"cells": 2, "genes": 255, "width": 128}


def main(argv: list[str]) -> None:
    """Print the tables. Takes no options."""
    if argv in (["-h"], ["--help"]):
        print(
            "mdsc doctor   show versions, devices, and of each attention (--model.attention) whether it works here,\n"
            "              forward and backward, how to get it, its error and its speed; it takes no options"
        )
        return
    if argv:
        raise UserError(f"mdsc doctor takes no options, but got {' '.join(argv)}.")
    console = Console()
    console.print(_versions())
    console.print(_devices())
    for device, _, fast_bf16 in _found_devices():
        if device.index in (None, 0):  # GPUs of a machine are alike
            console.print(_attention(device, torch.float32))
            if fast_bf16 == "yes":
                console.print(_attention(device, torch.bfloat16))
    for name, backend in BACKENDS.items():
        if backend.package and "not installed" in (missing(name) or ""):
            console.print(f"To get {name} (never needed): {backend.install}", markup=False, soft_wrap=True)


def _versions() -> Table:
    table = Table(
        "package", "version", title=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    for package in (*PACKAGES, *OPTIONAL):
        try:
            table.add_row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(package, escape(f"not installed ({OPTIONAL.get(package, 'needed')})"))
    return table


def _devices() -> Table:
    table = Table("device", "what it is", "fast bf16", title="Devices")
    for device, name, bf16 in _found_devices():
        table.add_row(str(device), name, bf16)
    return table


def _found_devices() -> Iterator[tuple[torch.device, str, str]]:
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield torch.device("cuda", index), name, _yes(computes_bf16(torch.device("cuda", index)))
    if torch.backends.mps.is_available():
        yield torch.device("mps"), "Apple GPU", "no"
    cores = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    yield torch.device("cpu"), cores, _yes(computes_bf16(torch.device("cpu")))


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _attention(device: torch.device, dtype: torch.dtype) -> Table:
    trial = AttentionTrial(device, dtype, **SHAPES.get(device.type, SMALL_SHAPE))
    found = {name: trial.run(name) for name in BACKENDS}
    batch, genes, width = trial.x.shape
    on = f"{device}, {str(dtype).removeprefix('torch.')}: {batch} cells, {genes} genes, width {width}"
    table = Table(
        "--model.attention",
        "forward, backward, with pads",
        "error",
        "of gradient",
        "time",
        title=f"Attention on {on}",
        caption="Errors against eager attention in float32, over the largest value. Time of forward and backward, "
        "without pads, over that of sdpa. All give the same numbers: any may read what another has trained.",
        caption_justify="left",
    )
    for name, result in found.items():
        is_timed = result.seconds is not None and found["sdpa"].seconds is not None
        relative = f"{result.seconds / found['sdpa'].seconds:.2f}" if is_timed else "-"
        table.add_row(name, escape(result.verdict), _number(result.error), _number(result.gradient_error), relative)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"
