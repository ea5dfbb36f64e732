"""Which attention runs: the names of `--model.attention`, what each one needs, and what takes its place.

All go through transformers' attention interface, from the same weights, and give the same numbers: who reads a
checkpoint may choose another one than who trained it. What is missing on a machine is replaced by `sdpa`, which says so
once; but what was asked for by name is an error.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function, sdpa_mask
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

from mdsc.errors import UserError


@dataclass(frozen=True)
class Backend:
    """An implementation of attention: where it runs."""

    module: str | None = None
    """What it imports beside torch and transformers."""
    package: str | None = None
    """The package that this module comes with."""
    install: str = ""
    """How to get it."""
    flash_version: int | None = None
    """What transformers calls it."""
    needs_cuda: bool = False
    needs_half: bool = False
    """On CUDA, it computes in bf16 and fp16 alone."""
    takes_mask: bool = True
    """On CUDA, whether cells may have pads."""
    has_cpu_backward: bool = True


FLASH_2 = Backend(
    "flash_attn",
    "flash-attn",
    "pip install 'mdsc[flash]' --no-build-isolation; it needs nvcc, or a wheel that fits this torch from "
    "https://github.com/Dao-AILab/flash-attention/releases",
    flash_version=2,
    needs_cuda=True,
    needs_half=True,
)
FLASH_3 = Backend(
    "flash_attn_interface",
    "flash-attn-3",
    "build it from the folder hopper/ of https://github.com/Dao-AILab/flash-attention; it is for H100 and H200",
    flash_version=3,
    needs_cuda=True,
    needs_half=True,
)
BACKENDS = {
    "sdpa": Backend(),
    "sdpa_flash": Backend(needs_half=True, takes_mask=False),
    "sdpa_efficient": Backend(needs_cuda=True),
    "sdpa_cudnn": Backend(needs_cuda=True, needs_half=True),
    "sdpa_math": Backend(),
    "flash_attention_2": FLASH_2,
    "flash_attention_3": FLASH_3,
    "flex_attention": Backend(has_cpu_backward=False),
    "eager": Backend(),
}
"""Name of `--model.attention` -> what it needs."""


class Attending(NamedTuple):
    """How the blocks of one forward pass attend."""

    implementation: str
    mask: object
    """In the form that this implementation takes; None where there are no pads."""


def missing(name: str) -> str | None:
    """Why this machine cannot run it at all, in a few words; None if it might."""
    backend = BACKENDS[name]
    if backend.module and importlib.util.find_spec(backend.module) is None:
        return f"the package {backend.package} is not installed"
    if backend.needs_cuda and not torch.cuda.is_available():
        return "it runs on CUDA GPUs alone, and there is none here"
    version = backend.flash_version
    if version and not FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]["general_availability_check"]():
        return f"transformers cannot use the {backend.package} that is installed: it, or the GPU, is too old"
    return None


def unfit(name: str, device_type: str, *, is_half: bool, has_pads: bool, needs_grad: bool) -> str | None:
    """Why it cannot run on such tensors, in a few words; None if it can. `is_half`: bf16 or fp16."""
    backend = BACKENDS.get(name)
    if backend is None:  # registered in transformers' interface by somebody else
        return None
    if backend.needs_cuda and device_type != "cuda":
        return "it runs on CUDA GPUs alone"
    if device_type == "cuda" and backend.needs_half and not is_half:
        return "it computes in bf16, and this is float32"
    if device_type == "cuda" and has_pads and not backend.takes_mask:
        return "it takes no pads"
    if device_type == "cpu" and needs_grad and not backend.has_cpu_backward:
        return "it has no backward pass on a CPU"
    return None


def require(name: str, reason: str | None, flag: str = "attention") -> None:
    """Raise UserError if there is a reason why an implementation that was asked for by name cannot run."""
    if reason is None:
        return
    install = BACKENDS[name].install if "not installed" in reason else ""
    how = f"To get it: {install}." if install else "`mdsc doctor` shows what works here."
    raise UserError(f"{flag} {name}: {reason}.\n{how} Or leave it out: sdpa gives the same numbers.")


def attending(
    name: str, x: Float[Tensor, "batch genes hidden"], is_pad: Bool[Tensor, "batch genes"] | None
) -> Attending:
    """What attends over these cells: `name`, or sdpa where that cannot run; and the mask that it takes."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    is_half = dtype in (torch.bfloat16, torch.float16)
    reason = unfit(name, device, is_half=is_half, has_pads=is_pad is not None, needs_grad=torch.is_grad_enabled())
    if reason:
        say_once(f"attention {name}: {reason}; sdpa takes its place and gives the same numbers")
        name = "sdpa"
    return Attending(name, None if is_pad is None else padding_mask(name, is_pad, dtype))


def padding_mask(name: str, is_pad: Bool[Tensor, "batch genes"], dtype: torch.dtype) -> object:
    """Nobody looks at pads. In a cell of pads alone everybody does: a softmax over nothing is NaN in some kernels."""
    keep = ~is_pad | is_pad.all(dim=1, keepdim=True)
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(name, sdpa_mask)  # sdpa_* and strangers take a boolean one
    return make(
        batch_size=keep.shape[0],
        q_length=keep.shape[1],
        kv_length=keep.shape[1],
        q_offset=0,
        kv_offset=0,
        mask_function=bidirectional_mask_function,
        attention_mask=keep,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,  # to find that there are no pads, the host would wait for the device
        dtype=dtype,
        device=keep.device,
    )


def attend(
    attending: Attending,
    module: nn.Module,
    query: Float[Tensor, "batch heads genes head"],
    key: Float[Tensor, "batch heads sources head"],
    value: Float[Tensor, "batch heads sources head"],
) -> Float[Tensor, "batch genes heads head"]:
    """softmax(q k^T / sqrt(head)) v over all sources that the mask leaves.

    Queries and sources may be the same genes. `module` has the config, and is not causal.
    """
    function = ATTENTION_FUNCTIONS.get_interface(attending.implementation, eager_attention)
    scaling = query.shape[-1] ** -0.5
    # Without is_causal, transformers' functions take what they are given for text.
    return function(module, query, key, value, attending.mask, scaling=scaling, is_causal=False)[0]


def eager_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """softmax(q k^T) v in plain PyTorch, with the signature of transformers' attention interface."""
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def sdpa_by(*backends: SDPBackend) -> Callable:
    """transformers' sdpa attention, with the kernels that torch may choose from."""

    def attention(module, query, key, value, attention_mask, **options):
        with sdpa_kernel(list(backends)):
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    return attention


def sdpa_attention(module, query, key, value, attention_mask, **options):
    """transformers' sdpa attention, but on GPUs with pads without cuDNN.

    The gradient of its bf16 kernel had NaN where a mask met a number of genes that is 64 mod 128 (pytorch#196678).
    """
    if attention_mask is not None and query.is_cuda:
        return _sdpa_without_cudnn(module, query, key, value, attention_mask, **options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


_sdpa_without_cudnn = sdpa_by(SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)

# transformers' own functions, and those of this model alone.
ATTENTION_FUNCTIONS = AttentionInterface()
ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention
ATTENTION_FUNCTIONS["sdpa_flash"] = sdpa_by(SDPBackend.FLASH_ATTENTION)
ATTENTION_FUNCTIONS["sdpa_efficient"] = sdpa_by(SDPBackend.EFFICIENT_ATTENTION)
ATTENTION_FUNCTIONS["sdpa_cudnn"] = sdpa_by(SDPBackend.CUDNN_ATTENTION)
ATTENTION_FUNCTIONS["sdpa_math"] = sdpa_by(SDPBackend.MATH)


def say_once(line: str) -> None:
    """Tell on stderr, on the main process, and the first time only."""
    if not torch.compiler.is_compiling() and os.environ.get("RANK", "0") == "0":
        _say(line)


@cache
def _say(line: str) -> None:
    logging.getLogger("mdsc").warning(line)
