"""Validation: likelihood and accuracy on hidden positions alone, at fixed mask ratios, the same ones every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Predict, hide
from mdsc.diffusion.losses import cross_entropy, log_probs

# What is hidden must not follow the run's seed: runs are compared by these numbers.
HIDING_SEED = 0


@dataclass(frozen=True)
class Score:
    """Means over the hidden positions of all validation cells."""

    nll: float
    """Nats per hidden gene."""
    accuracy: float
    """Share of hidden genes whose most probable token is the true one."""


def share_of(cells: CellBatch, process: int, num_processes: int) -> CellBatch:
    """Cells that this process scores: equally many on each, so that some have one that is all pads."""
    places = torch.arange(-(-len(cells) // num_processes)) * num_processes + process
    share = cells.select(places.clamp(max=len(cells) - 1))
    return replace(share, is_pad=share.is_pad | (places >= len(cells))[:, None])


@torch.no_grad()
def validate(
    predict: Predict,
    cells: CellBatch,
    tokenizer: Tokenizer,
    mask_ratios: Sequence[float],
    *,
    batch_size: int,
    sum_over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    wants_stop: Callable[[], bool] = lambda: False,
) -> dict[float, Score] | None:
    """Score `predict` on this process's share of the validation cells; the sums are over all processes.

    None if `wants_stop()` was true on any process before it was through. All processes have equally many cells.
    """
    totals = torch.zeros(len(mask_ratios), 3, dtype=torch.float64, device=cells.tokens.device)
    for part in cells.split(batch_size):
        # All go on or none: sharded processes need each other for every batch.
        if sum_over_processes(totals.new_tensor([wants_stop()])).any():
            return None
        for row, ratio in enumerate(mask_ratios):
            hidden = hide_fraction(part.is_pad, ratio, seed=HIDING_SEED, cell_index=part.cell_index)
            log_p = log_probs(hide(part, hidden).predict(predict, tokenizer))
            targets = part.tokens.masked_fill(~hidden, 0)
            nll = torch.where(hidden, cross_entropy(log_p, targets), 0.0)
            right = hidden & (log_p.argmax(dim=-1) == targets)
            totals[row] += torch.stack([nll.sum(dtype=torch.float64), right.sum().double(), hidden.sum().double()])
    nll, right, number = sum_over_processes(totals).unbind(dim=1)
    scores = torch.stack([nll, right], dim=1) / number[:, None].clamp(min=1)
    return {ratio: Score(*row) for ratio, row in zip(mask_ratios, scores.tolist(), strict=True)}


def record(scores: dict[float, Score]) -> dict[str, float]:
    """The scores as flat names for metrics.jsonl: `validation_nll` is the mean over the mask ratios."""
    flat = {"validation_nll": sum(score.nll for score in scores.values()) / max(len(scores), 1)}
    for ratio, score in scores.items():
        flat[f"validation_nll_at_{ratio:g}"] = score.nll
        flat[f"validation_accuracy_at_{ratio:g}"] = score.accuracy
    return flat
