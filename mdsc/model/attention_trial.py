"""Does an attention work on this machine: forward, backward, with pads, against eager attention; and how fast is it.

What is tried is the model's own layer, without any fallback. `mdsc doctor` prints what comes of it.
"""

import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdsc.model.attention import BACKENDS, Attending, missing, padding_mask, unfit
from mdsc.model.blocks import Attention
from mdsc.model.configuration import MdscConfig

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of the largest value."""
HEAD = 64
"""Features of a head."""


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    verdict: str
    """"works", "works without pads", "forward only: ...", "no: ..." or "wrong: ..."."""
    error: float | None = None
    """Largest difference of outputs from those of eager attention in float32, over the largest output."""
    gradient_error: float | None = None
    """Largest difference of gradients of the weights, over the largest gradient."""
    seconds: float | None = None
    """Forward and backward over the cells, without pads; the best of several times."""


class AttentionTrial:
    """One layer and some cells, of which the first has pads, that each implementation is tried on."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, cells: int, genes: int, width: int):
        """dtype: bf16 means autocast, as in training. genes: an odd number finds kernels that cannot take one."""
        self.device, self.dtype = device, dtype
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(cells, genes, width, generator=generator).to(device)
        self.is_pad = torch.zeros(cells, genes, dtype=torch.bool, device=device)
        self.is_pad[0, genes // 2 :] = True
        config = MdscConfig(num_genes=1, num_tokens=1, hidden_size=width, num_heads=max(width // HEAD, 1))
        self.layer = Attention(config)
        with torch.no_grad():
            for weights in self.layer.parameters():
                weights.copy_(torch.randn(weights.shape, generator=generator) * width**-0.5)
        self.layer.to(device)

    def run(self, name: str) -> Trial:
        """Try this implementation. Whatever it raises is what was to be found out."""
        backend = BACKENDS[name]
        is_half = self.dtype != torch.float32
        reason = missing(name) or unfit(name, self.device.type, is_half=is_half, has_pads=False, needs_grad=False)
        if reason:
            return Trial(f"no: {reason}")
        takes_pads = backend.takes_mask or self.device.type != "cuda"
        is_pad = self.is_pad if takes_pads else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compilers have much to say
            try:
                with torch.no_grad():
                    error = _difference(self._output(name, is_pad, self.dtype), self._output("eager", is_pad))
            except Exception as failure:
                return Trial(f"no: {_first_sentence(failure)}")
            if not error < TOLERANCE[self.dtype]:
                return Trial(f"wrong: outputs differ by {error:.2g} of the largest", error=error)
            try:
                gradient_error = _difference(self._gradient(name, is_pad, self.dtype), self._gradient("eager", is_pad))
            except Exception as failure:
                return Trial(f"forward only: {_first_sentence(failure)}", error=error)
            if not gradient_error < TOLERANCE[self.dtype]:
                verdict = f"wrong: gradients differ by {gradient_error:.2g} of the largest"
                return Trial(verdict, error=error, gradient_error=gradient_error)
            seconds = self._seconds(name)
        verdict = "works" if takes_pads else "works without pads"
        return Trial(verdict, error=error, gradient_error=gradient_error, seconds=seconds)

    def _output(
        self, name: str, is_pad: Bool[Tensor, "batch genes"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "positions hidden"]:
        """Of the genes that are no pads. The layer's config tells flash attention who it is."""
        self.layer.config._attn_implementation_internal = name
        mask = None if is_pad is None else padding_mask(name, is_pad, dtype)
        is_half = dtype != torch.float32
        with torch.autocast(self.device.type, dtype) if is_half else nullcontext():
            output = self.layer(self.x, Attending(name, mask))
        return (output.flatten(0, 1) if is_pad is None else output[~is_pad]).float()

    def _gradient(
        self, name: str, is_pad: Bool[Tensor, "batch genes"] | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, " weights"]:
        self.layer.zero_grad()
        self._output(name, is_pad, dtype).square().mean().backward()
        return torch.cat([weights.grad.flatten() for weights in self.layer.parameters()])

    def _seconds(self, name: str, times: int = 5) -> float:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            self._gradient(name, None, self.dtype)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)


def _difference(found: Tensor, expected: Tensor) -> float:
    """NaN where there is one in either."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0][:120]
