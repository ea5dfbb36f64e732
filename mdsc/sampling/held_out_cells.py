"""The cells that a run kept out of its training: what is sampled when no input is given."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mdsc.checkpoint import Checkpoint
from mdsc.data.shard_mixture import open_shards
from mdsc.errors import UserError

if TYPE_CHECKING:
    from anndata import AnnData

MAX_CELLS = 2000


def held_out_cells(checkpoint: Checkpoint, say: Callable[[str], None]) -> tuple["AnnData", str]:
    """The first held-out cells of the run's shards, MAX_CELLS at most, and how messages name them."""
    if checkpoint.config is None:
        raise UserError(
            "--input is not given, and the checkpoint does not tell its shards (training.yaml); give --input."
        )
    path = Path(checkpoint.config.data.dir)
    if not path.exists():
        raise UserError(f"--input is not given, and the run's shards ({path}) are not here; give --input.")
    folder = open_shards(path)
    split = folder.held_out_split
    number = folder.num_cells(split)
    first = f"first {MAX_CELLS:,} of the {number:,}" if number > MAX_CELLS else f"{number:,}"
    say(f"--input is not given: taking the {first} {split} cells of {path}")
    return folder.to_anndata(split, max_cells=MAX_CELLS), f"{path} ({split})"
