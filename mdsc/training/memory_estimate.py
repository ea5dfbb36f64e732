"""How much memory training takes, told from the options alone: nothing is allocated.

A step is run on fake tensors, which have shapes and types and no bytes. So every tensor that the model, autocast and
the kernels of attention keep is counted as it is, whatever the network is made of, and no formula can grow stale.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mdsc.config.schema import ObjectiveConfig, TrainConfig
from mdsc.diffusion.losses import objective
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.model.trunk_block import recompute_blocks
from mdsc.training.memory_measure import LiveBytes

FLOAT32 = 4
OWN_MEMORY = ("eager", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math")
"""Kernels of attention that are run as they are. The others keep what sdpa's keep: queries, keys, values and output."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on a device, for `cells` at once."""

    cells: int
    weights: int
    gradients: int
    moments: int
    averaged: int
    """The averaged weights."""
    copies: int
    """For saving in the background, where the device is the host: weights, moments and averaged weights once more."""
    kept: int
    """What the forward pass keeps for the backward pass."""
    activations: int
    """The most that a forward and backward pass has alive beside all this, `kept` included."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.averaged + self.copies + self.activations

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "moments": self.moments,
            "averaged weights": self.averaged,
            "copies for saving": self.copies,
            f"activations of {self.cells:,} cell{'s' * (self.cells > 1)}": self.activations,
        }
        named = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in parts.items() if size)
        return f"{named}: {bytes_in_words(self.total)}"


def estimate_memory(
    model: MdscConfig,
    config: TrainConfig,
    device: torch.device,
    *,
    cells: int,
    genes: int,
    uses_bf16: bool,
    shards: int = 1,
) -> MemoryEstimate:
    """Of a training step with the whole network on `cells` cells of `genes` genes.

    `shards`: processes that share weights, gradients and moments (FSDP2). torch.compile takes less, which is not told.
    """
    try:
        kept, activations, parameters, buffers = _of_a_step(model, config, device, cells, genes, uses_bf16)
    except Exception:
        if device.type == "cpu":
            raise
        # Fake tensors ask a device's kernels for shapes only, but not every kernel has an answer.
        kept, activations, parameters, buffers = _of_a_step(model, config, torch.device("cpu"), cells, genes, uses_bf16)
    own = -(-FLOAT32 * parameters // shards)
    weights = own + buffers
    return MemoryEstimate(
        cells=cells,
        weights=weights,
        gradients=own,
        moments=2 * own,
        averaged=own if holds_averages(config, device) else 0,
        copies=weights + 3 * own if device.type == "cpu" else 0,
        kept=kept,
        activations=activations,
    )


def holds_averages(config: TrainConfig, device: torch.device) -> bool:
    """Whether the averaged weights take memory of the device."""
    return device.type == "cpu" or config.train.ema_device == "device"


def _of_a_step(
    model_config: MdscConfig, config: TrainConfig, device: torch.device, cells: int, genes: int, uses_bf16: bool
) -> tuple[int, int, int, int]:
    """Bytes kept, most bytes alive; number of parameters, bytes of buffers."""
    attention = model_config._attn_implementation
    with FakeTensorMode(), torch.device(device):
        model = MdscModel(copy.deepcopy(model_config)).train()
        model.set_attn_implementation(attention if attention in OWN_MEMORY else "sdpa")
        if config.train.gradient_checkpointing:
            recompute_blocks(model)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)  # of an earlier micro-batch

        has_pads = config.data.gene_draw == "expressed"
        with LiveBytes((*parameters, *model.buffers(), *(parameter.grad for parameter in parameters))) as live:
            loss = _loss(model, config.objective, cells, genes, uses_bf16, has_pads=has_pads)
            kept = live.now
            loss.backward()
        buffers = sum(buffer.nbytes for buffer in model.buffers())
    return kept, live.peak, sum(parameter.numel() for parameter in parameters), buffers


def _loss(
    model: MdscModel, options: ObjectiveConfig, cells: int, genes: int, uses_bf16: bool, *, has_pads: bool
) -> Tensor:
    """A step's, on cells without any zero: the latent backbone takes most of them."""
    gene_ids = torch.zeros(cells, genes, dtype=torch.long)
    tokens, counts, is_pad = gene_ids + 1, gene_ids.int() + 1, gene_ids.bool()
    with torch.autocast(gene_ids.device.type, torch.bfloat16, enabled=uses_bf16):
        logits = model(gene_ids, tokens, counts, is_pad if has_pads else None, max_nonzero=genes).logits
    weight, values = torch.ones(cells, dtype=torch.float64), torch.ones(model.config.num_tokens)
    return objective(logits, tokens, ~is_pad, weight, is_pad, values, options)["loss"].sum()


def bytes_in_words(number: int) -> str:
    """As 1.2 GB or 34 MB, in powers of ten."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
