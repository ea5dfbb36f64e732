"""What a prediction at hidden positions costs: cross-entropy, and ordinal terms that know that 3 is nearer 4 than 9.

Every term is a number per position, summed over a cell's hidden positions with the corruption's weight and divided by
the cell's real positions, so that all are in the same measure: per gene. Only the cross-entropy is a likelihood.

The squared mean matching and the CRPS are proper: added to the cross-entropy they keep its minimiser, the true
distribution. The unsquared form (the parents') is not: it pulls the mean of a skewed law towards its median.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdsc.config.schema import ObjectiveConfig


def log_probs(
    logits: Float[Tensor, "batch genes V"], tokens: Int[Tensor, "batch genes"] | None = None
) -> Float[Tensor, "batch genes V"]:
    """Log-probabilities of the V data tokens, at least in float32 whatever the logits are.

    The mask token has probability 0, because no logit stands for it. tokens: the state that the model saw; where it
    shows a data token (below V), all probability is on that token (MDLM's SUBS, arXiv 2406.07524).
    """
    log_p = torch.log_softmax(_at_least_float32(logits), dim=-1)
    if tokens is None:
        return log_p
    num_tokens = logits.shape[-1]
    is_data = (tokens < num_tokens)[..., None]
    is_other = torch.arange(num_tokens, device=tokens.device) != tokens[..., None]
    return log_p.masked_fill(is_data, 0.0).masked_fill(is_data & is_other, -torch.inf)


def cross_entropy(
    log_p: Float[Tensor, "batch genes V"], tokens: Int[Tensor, "batch genes"]
) -> Float[Tensor, "batch genes"]:
    """-log p(token), in nats; tokens are data tokens."""
    return -log_p.gather(-1, tokens[..., None])[..., 0]


def mean_matching(
    log_p: Float[Tensor, "batch genes V"],
    tokens: Int[Tensor, "batch genes"],
    v: Float[Tensor, " V"],
    *,
    squared: bool = True,
) -> Float[Tensor, "batch genes"]:
    """(sum_j p_j v_j - v_x)^2 for the values v of the tokens; without the square, its absolute value."""
    # No product of matrices: autocast would take it in bfloat16.
    difference = (log_p.exp() * v).sum(dim=-1) - v[tokens]
    return difference.square() if squared else difference.abs()


def crps(
    log_p: Float[Tensor, "batch genes V"], tokens: Int[Tensor, "batch genes"], v: Float[Tensor, " V"]
) -> Float[Tensor, "batch genes"]:
    """Continuous ranked probability score of a law on the points v: sum_k (v_{k+1} - v_k) (F_k - 1[x <= k])^2.

    In units of v (Gneiting & Raftery 2007, "Strictly proper scoring rules", eq. 20).
    """
    below = log_p.exp().cumsum(dim=-1)[..., :-1]
    reached = tokens[..., None] <= torch.arange(len(v) - 1, device=tokens.device)
    return ((below - reached.to(below.dtype)).square() * v.diff()).sum(dim=-1)


def per_gene(
    loss: Float[Tensor, "batch genes"],
    hidden: Bool[Tensor, "batch genes"],
    weight: Float[Tensor, " batch"],
    is_pad: Bool[Tensor, "batch genes"],
) -> Float[Tensor, " batch"]:
    """weight * (sum of the loss over a cell's hidden positions) / (number of its real positions)."""
    n = (~is_pad).sum(dim=1).clamp(min=1)
    return torch.where(hidden, loss, 0.0).sum(dim=1) * (weight / n).to(loss.dtype)


def cross_entropy_per_cell(
    logits: Float[Tensor, "batch genes V"],
    tokens: Int[Tensor, "batch genes"],
    hidden: Bool[Tensor, "batch genes"],
    weight: Float[Tensor, " batch"],
    is_pad: Bool[Tensor, "batch genes"],
) -> Float[Tensor, " batch"]:
    """The diffusion bound of each cell's negative log-likelihood, in nats per gene, by one corruption."""
    targets = tokens.masked_fill(~hidden, 0)
    return per_gene(cross_entropy(log_probs(logits), targets), hidden, weight, is_pad)


def objective(
    logits: Float[Tensor, "batch genes V"],
    tokens: Int[Tensor, "batch genes"],
    hidden: Bool[Tensor, "batch genes"],
    weight: Float[Tensor, " batch"],
    is_pad: Bool[Tensor, "batch genes"],
    values: Float[Tensor, " V"],
    config: ObjectiveConfig,
) -> dict[str, Float[Tensor, " batch"]]:
    """What training minimises, per cell: nll, ordinal and loss = nll + config.ordinal_weight * ordinal.

    tokens: those of the whole cell, anything at pads. hidden, weight: the corruption. values: the count that each token
    stands for; the ordinal terms compare log1p of it. nll is in nats per gene and never contains the ordinal term.
    """
    targets = tokens.masked_fill(~hidden, 0)
    log_p = log_probs(logits)
    nll = per_gene(cross_entropy(log_p, targets), hidden, weight, is_pad)
    if config.ordinal == "none":
        return {"loss": nll, "nll": nll, "ordinal": torch.zeros_like(nll)}
    v = values.to(device=log_p.device, dtype=log_p.dtype).log1p()
    if config.ordinal == "crps":
        score = crps(log_p, targets, v)
    else:
        score = mean_matching(log_p, targets, v, squared=config.ordinal == "mean_matching")
    ordinal = per_gene(score, hidden, weight, is_pad)
    return {"loss": nll + config.ordinal_weight * ordinal, "nll": nll, "ordinal": ordinal}


def _at_least_float32(logits: Tensor) -> Tensor:
    """bfloat16 and float16 go up to float32; float64, which tests use, stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
