"""A plain DiT as in the MDLM paper, restated: what `train_step.py` sets our training step beside.

Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", arXiv 2406.07524, section 5 and appendix:
adaLN-Zero blocks with a condition of 128 features from a noise level that is not used (sigma = 0), rotary positions,
layer norms with a gain and in float32, linear maps of attention without biases, a tanh-GELU MLP, and a head over the
vocabulary with the mask in it, whose logit SUBS sets to -inf. Ours in words and code; in plain PyTorch, so that its
elementwise work is as eager or as compiled as that of the model beside it. Two things differ from the paper, and make
it cheaper or the same: attention is torch's own (the paper's was flash-attn), and there is no dropout. So that it can
be trained on the same cells, the gene's embedding is added to the token's.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

CONDITION_SIZE = 128
FREQUENCIES = 256


class GainLayerNorm(nn.Module):
    """Layer norm with a gain and no bias, in float32 under autocast too."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "batch genes width"]) -> Float[Tensor, "batch genes width"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.float(), [self.width]) * self.weight


class SigmaEmbedding(nn.Module):
    """Noise level -> condition, by sines and an MLP (Peebles & Xie 2023, arXiv 2212.09748)."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCIES, CONDITION_SIZE), nn.SiLU(), nn.Linear(CONDITION_SIZE, CONDITION_SIZE)
        )

    def forward(self, sigma: Float[Tensor, " batch"]) -> Float[Tensor, "batch condition"]:
        half = FREQUENCIES // 2
        rates = 10_000.0 ** (-torch.arange(half, device=sigma.device) / half)
        angles = sigma[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


def rotate(
    x: Float[Tensor, "batch heads genes head"], cos: Float[Tensor, "genes head"], sin: Float[Tensor, "genes head"]
) -> Float[Tensor, "batch heads genes head"]:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), the two halves of a head as one pair."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class ReferenceBlock(nn.Module):
    """The layer of the paper."""

    def __init__(self, width: int, num_heads: int, rotary: bool):
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.norm1, self.norm2 = GainLayerNorm(width), GainLayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(CONDITION_SIZE, 6 * width)

    def forward(
        self,
        x: Float[Tensor, "batch genes width"],
        condition: Float[Tensor, "batch condition"],
        cos: Float[Tensor, "genes head"],
        sin: Float[Tensor, "genes head"],
    ) -> Float[Tensor, "batch genes width"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, dim=-1)
        modulated = self.norm1(x) * (1 + scale_a) + shift_a
        query, key, value = self.qkv(modulated).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary:
            query, key = (rotate(part, cos.to(part.dtype), sin.to(part.dtype)) for part in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate_a * self.out(mixed)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class ReferenceDit(nn.Module):
    """Embeddings, blocks and head. Takes the tokens that `MdscModel` takes, and nothing else of a cell.

    rotary: as in the paper; False leaves the positions out, which mean nothing for genes and cost time.
    """

    def __init__(self, num_genes: int, num_tokens: int, width: int, num_layers: int, num_heads: int, *, rotary: bool):
        super().__init__()
        self.num_tokens = num_tokens
        self.head_size = width // num_heads
        self.gene_embedding = nn.Embedding(num_genes, width)
        self.token_embedding = nn.Embedding(num_tokens + 1, width)  # the mask is token `num_tokens`
        self.sigma = SigmaEmbedding()
        self.blocks = nn.ModuleList([ReferenceBlock(width, num_heads, rotary) for _ in range(num_layers)])
        self.final_norm = GainLayerNorm(width)
        self.final_modulation = nn.Linear(CONDITION_SIZE, 2 * width)
        self.head = nn.Linear(width, num_tokens + 1)
        for layer in (self.final_modulation, self.head, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, gene_ids: Int[Tensor, "batch genes"], tokens: Int[Tensor, "batch genes"]
    ) -> Float[Tensor, "batch genes tokens_and_mask"]:
        """Logits, those of the mask too."""
        x = self.gene_embedding(gene_ids) + self.token_embedding(tokens)
        condition = F.silu(self.sigma(torch.zeros(len(tokens), device=tokens.device)))
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * (
            10_000.0 ** (-torch.arange(0, self.head_size, 2, device=x.device) / self.head_size)
        )
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        for block in self.blocks:
            x = block(x, condition, cos, sin)
        shift, scale = self.final_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.head(self.final_norm(x) * (1 + scale) + shift)

    def loss(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        tokens: Int[Tensor, "batch genes"],
        targets: Int[Tensor, "batch genes"],
        weight: Float[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """MDLM's: -log p(x) at masked positions under SUBS, times a weight per cell, mean over all positions."""
        logits = self(gene_ids, tokens).float()
        logits = logits.masked_fill(torch.arange(self.num_tokens + 1, device=tokens.device) == self.num_tokens, -1e6)
        log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
        nll = -log_p.gather(-1, targets[..., None])[..., 0]
        return (nll * (tokens == self.num_tokens) * weight[:, None]).mean()
