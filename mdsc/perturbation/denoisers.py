"""Networks that denoise latents: x_t over its sd, the time and a condition vector in, the target's raw output out.

All start at 0 in the output, and compute in float32 whatever autocast says.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mdsc.model.keyed_dropout import KeyedDropout
from mdsc.model.zero_start import ZeroLinear
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.ridge_shift import RidgeShift

DENOISERS = ("mlp", "adaln", "set")
TIME_FEATURES = 64
_HEAD_SIZE = 32


class Denoiser(nn.Module, ABC):
    """Base of all kinds."""

    def forward(
        self,
        x: Float[Tensor, "batch k"],
        time: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch c"],
        group_size: int = 1,
    ) -> Float[Tensor, "batch k"]:
        """Raw output of each cell.

        Args:
            x: `mdsc.perturbation.targets.network_input`, as is the time.
            condition: of each cell; finite.
            group_size: consecutive rows that are one set of cells; ValueError where the batch does not divide into
                them. Only `set` looks at other rows than its own.
        """
        if group_size < 1 or len(x) % group_size:
            raise ValueError(f"{len(x)} cells are no groups of {group_size}")
        with torch.autocast(x.device.type, enabled=False):
            return self._denoised(x.float(), time_features(time.float()), condition.float(), group_size)

    @abstractmethod
    def _denoised(self, x: Tensor, time: Tensor, condition: Tensor, group_size: int) -> Tensor: ...


class ResidualMlp(Denoiser):
    """mlp: latents, time and condition side by side, then residual layers."""

    def __init__(self, latent_size: int, condition_size: int, width: int, num_layers: int, dropout: float):
        super().__init__()
        self.read = nn.Linear(latent_size + TIME_FEATURES + condition_size, width)
        self.blocks = nn.ModuleList([FeedForward(width, dropout) for _ in range(num_layers)])
        self.head = ZeroLinear(width, latent_size)

    def _denoised(self, x: Tensor, time: Tensor, condition: Tensor, group_size: int) -> Tensor:
        h = self.read(torch.cat([x, time, condition], dim=1))
        for block in self.blocks:
            h = h + block(F.layer_norm(h, h.shape[-1:]))
        return self.head(F.layer_norm(h, h.shape[-1:]))


class AdalnMlp(Denoiser):
    """adaln and set: blocks that time and condition shift, scale and gate, the gates at 0 at first (adaLN-Zero).

    Peebles & Xie 2023, arXiv 2212.09748, section 3.2. With `attends` each block first attends among the cells of a
    group, which no position tells apart: permuting them permutes the output.
    """

    def __init__(
        self, latent_size: int, condition_size: int, width: int, num_layers: int, dropout: float, attends: bool
    ):
        super().__init__()
        self.read = nn.Linear(latent_size, width)
        self.read_time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.read_condition = nn.Sequential(nn.Linear(condition_size, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([_AdalnBlock(width, dropout, attends) for _ in range(num_layers)])
        self.modulation = ZeroLinear(width, 2 * width)
        self.head = ZeroLinear(width, latent_size)

    def _denoised(self, x: Tensor, time: Tensor, condition: Tensor, group_size: int) -> Tensor:
        h = self.read(x)  # (batch, width)
        condition = F.silu(self.read_time(time) + self.read_condition(condition))
        for block in self.blocks:
            h = block(h, condition, group_size)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        return self.head(_modulated(h, shift, scale))


class _AdalnBlock(nn.Module):
    def __init__(self, width: int, dropout: float, attends: bool):
        super().__init__()
        self.attention = _GroupAttention(width, dropout) if attends else None
        self.feed_forward = FeedForward(width, dropout)
        self.modulation = ZeroLinear(width, 6 * width if attends else 3 * width)

    def forward(self, h: Tensor, condition: Tensor, group_size: int) -> Tensor:
        shift, scale, gate, *of_attention = self.modulation(condition).split(h.shape[1], dim=1)
        if self.attention is not None:
            attention_shift, attention_scale, attention_gate = of_attention
            h = h + attention_gate * self.attention(_modulated(h, attention_shift, attention_scale), group_size)
        return h + gate * self.feed_forward(_modulated(h, shift, scale))


class FeedForward(nn.Sequential):
    """What a block adds: two layers on normalised input."""

    def __init__(self, width: int, dropout: float):
        super().__init__(nn.Linear(width, width), nn.SiLU(), KeyedDropout(dropout), nn.Linear(width, width))


class _GroupAttention(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        most = max(1, width // _HEAD_SIZE)
        self.num_heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = KeyedDropout(dropout)

    def forward(self, h: Tensor, group_size: int) -> Tensor:
        batch, width = h.shape
        qkv = self.to_qkv(h).view(batch // group_size, group_size, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (groups, heads, group_size, head_size) each
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.out(attended.transpose(1, 2).reshape(batch, width)))


def make_denoiser(
    kind: str, latent_size: int, condition_size: int, width: int = 512, num_layers: int = 6, dropout: float = 0.0
) -> Denoiser:
    """The denoiser of this kind. At the default size, of 50 latents, adaln has 9.1M parameters and set 20M."""
    match kind:
        case "mlp":
            return ResidualMlp(latent_size, condition_size, width, num_layers, dropout)
        case "adaln" | "set":
            return AdalnMlp(latent_size, condition_size, width, num_layers, dropout, attends=kind == "set")
    raise ValueError(f"no denoiser {kind!r}: there are {', '.join(DENOISERS)}")


def time_features(time: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
    """Cosines and sines of log(sigma / alpha) / 4, from a period of 8 to one of 1/8. Computed, so nothing is kept."""
    frequencies = 2 ** torch.linspace(-3, 3, TIME_FEATURES // 2, device=time.device, dtype=time.dtype)
    phase = 2 * torch.pi * time[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Start of one module of this package; what `_init_weights` of a model that holds them calls."""
    match module:
        case ZeroLinear():
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        case nn.Linear():
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case PcaBasis():
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.scale)
            if module.size is not None:
                nn.init.zeros_(module.components)
        case RidgeShift():
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
