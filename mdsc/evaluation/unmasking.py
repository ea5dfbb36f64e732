"""How one cell is filled in, step by step: what the picture in the report shows."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Evidence, Predict, hide
from mdsc.evaluation.inpaint import HeldOutCells
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.samplers import draw_hidden


@dataclass(frozen=True)
class Unmasking:
    """States 0 (the evidence) to num_steps (the whole cell) of one cell."""

    counts: Int[np.ndarray, "states genes"]
    """0 where not visible yet."""
    visible: Bool[np.ndarray, "states genes"]
    truth: Int[np.ndarray, " genes"]
    mean_count: Float[np.ndarray, " genes"]
    """Over all cells that are scored: the order in which genes are shown."""
    ratio: float


def unmask_one_cell(
    predict: Predict,
    tokenizer: Tokenizer,
    cells: HeldOutCells,
    ratio: float,
    *,
    seed: int = 0,
    num_steps: int = 32,
    device: torch.device | str = "cpu",
) -> Unmasking:
    """Hide `ratio` of the cell of median depth and sample it back."""
    depth = np.asarray(cells.counts.sum(axis=1)).ravel()
    place = int(np.argsort(depth, kind="stable")[len(depth) // 2])
    batch = cells.batch(slice(place, place + 1), tokenizer)
    evidence = hide(batch, hide_fraction(batch.is_pad, ratio, seed=seed, cell_index=batch.cell_index)).to(device)
    states = [evidence]

    def keep(step: int, state: Evidence) -> None:
        states.append(state)

    draw_hidden(predict, evidence, tokenizer, SamplerOptions(num_steps=num_steps), seed=seed, callback=keep)
    return Unmasking(
        counts=torch.cat([state.counts for state in states]).cpu().numpy(),
        visible=torch.cat([state.visible for state in states]).cpu().numpy(),
        truth=batch.counts[0].numpy(),
        mean_count=np.asarray(cells.counts.mean(axis=0)).ravel(),
        ratio=ratio,
    )
