"""`mdsc doctor`: which versions, devices and attention implementations a run would find on this machine."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AttentionInterface

from mdsc.errors import UserError
from mdsc.model.bf16 import computes_bf16

PACKAGES = ("mdsc", "torch", "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "anndata", "tyro")
# Optional package -> what it is for and how it comes.
OPTIONAL = {
    "scanpy": "the embedded cells: pip install 'mdsc[demo]'",
    "wandb": "--tracking.wandb: pip install 'mdsc[wandb]'",
}
# Implementation -> the module it needs beside torch and transformers, and the package that has it.
IMPLEMENTATIONS = {
    "sdpa": None,
    "eager": None,
    "flex_attention": None,
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
# (batch, heads, genes, head_dim): the smallest that every kernel accepts.
SHAPE = (1, 2, 128, 64)


def main(argv: list[str]) -> None:
    """Print the tables. Takes no options."""
    if argv in (["-h"], ["--help"]):
        print("mdsc doctor   show versions, devices and which attention works here; it takes no options")
        return
    if argv:
        raise UserError(f"mdsc doctor takes no options, but got {' '.join(argv)}.")
    console = Console()
    console.print(_versions())
    console.print(_devices())
    console.print(_attention())


def try_attention(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """Run an attention of transformers' interface forward and backward on a tiny tensor; say in words what came of it.

    "works" means that outputs agree with softmax(q k^T / sqrt(d)) v in float32 to the precision of `dtype`.
    """
    needed = IMPLEMENTATIONS[implementation]
    if needed and importlib.util.find_spec(needed[0]) is None:
        return f"no: the package {needed[1]} is not installed"
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(3))
    scores = query.float() @ key.float().transpose(-1, -2) * SHAPE[-1] ** -0.5
    expected = (scores.softmax(-1) @ value.float()).transpose(1, 2)
    # Whatever a backend raises is the answer that this command is asked for.
    try:
        difference = (_attend(implementation, query, key, value).float() - expected).abs().max().item()
    except Exception as error:
        return f"no: {_first_sentence(error)}"
    if not difference < (1e-4 if dtype == torch.float32 else 3e-2):
        return f"wrong: differs by {difference:.2g}"
    try:
        _attend(implementation, *(x.requires_grad_() for x in (query, key, value))).float().square().sum().backward()
    except Exception as error:
        return f"forward only: {_first_sentence(error)}"
    return "works"


def _attend(implementation: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if implementation == "eager":
        return ((query @ key.transpose(-1, -2) * SHAPE[-1] ** -0.5).softmax(-1) @ value).transpose(1, 2)
    module = nn.Module()
    module.is_causal = False
    module.config = SimpleNamespace(_attn_implementation=implementation)
    attention = AttentionInterface()[implementation]
    return attention(module, query, key, value, None, scaling=SHAPE[-1] ** -0.5, is_causal=False)[0]


def _versions() -> Table:
    table = Table(
        "package", "version", title=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    for package in (*PACKAGES, *OPTIONAL):
        try:
            table.add_row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(package, f"not installed ({OPTIONAL.get(package, 'needed')})")
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


def _attention() -> Table:
    device = next(_found_devices())[0]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    title = f"Attention on {device}, {str(dtype).removeprefix('torch.')}, forward and backward"
    table = Table("--model.attention", "", title=title)
    for implementation in IMPLEMENTATIONS:
        table.add_row(implementation, try_attention(implementation, device, dtype))
    return table


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0][:120]
