"""What leaving small expected counts out of mdsc_mean saves, and what it loses, for some values of --mean-floor.

python benchmarks/mean_floor.py --checkpoint runs/mine --input test.h5ad --markdown mean_floor.md
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from result_tables import ResultTable, write_markdown

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.data.anndata_counts import read_counts
from mdsc.data.genes import known_columns
from mdsc.sampling.anndata_inpainting import evidence_of
from mdsc.sampling.conditions import CellConditions
from mdsc.sampling.hiding import Hiding
from mdsc.sampling.loaded_model import opened, predictor
from mdsc.sampling.pass_size import PassOptions, pass_size
from mdsc.sampling.posterior import posterior


@dataclass(frozen=True, kw_only=True)
class FloorConfig:
    checkpoint: Path
    """A run."""
    input: Path
    """h5ad file of cells that it was not trained on."""
    floors: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
    """Values of --mean-floor."""
    num_cells: int = 200
    """Cells, drawn evenly."""
    mask_ratio: float = 0.8
    """Share of the genes that is hidden."""
    json: Path | None = None
    """File for the numbers."""
    markdown: Path | None = None
    """File for the table."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(FloorConfig, args=argv, description=__doc__)
    torch.set_num_threads(1)
    results = measure(config)
    rows = [
        [
            f"{floor:g}" if floor else "0 (dense)", f"{found['kept']:.1%}", f"{found['bytes_per_cell'] / 1e3:,.1f}",
            f"{found['left_out']:.2%}", f"{found['mae']:.5f}", f"{found['depth_error']:.2%}",
        ]
        for floor, found in results.items()
    ]  # fmt: skip
    columns = ("floor", "entries above 0", "kB a cell", "expected counts left out", "mae_log1p of hidden", "worst cell")
    note = "kB: in memory, uncompressed. Worst cell: largest share that any cell loses of what is expected of it."
    table = ResultTable(f"{config.num_cells} cells, {config.mask_ratio:.0%} hidden", columns, rows, note)
    table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps({str(floor): one for floor, one in results.items()}, indent=1) + "\n")
    if config.markdown is not None:
        introduction = "Hidden genes of a lower expected count are left out of `mdsc_mean` (`docs/sampling.md`)."
        write_markdown(config.markdown, "Small expected counts", introduction, [table])


def measure(config: FloorConfig) -> dict[float, dict[str, float]]:
    checkpoint = opened(config.checkpoint)
    cells = read_counts(config.input)
    places = checkpoint.vocabulary.match_var(cells.var, str(config.input))
    columns = known_columns(places)
    rows = np.sort(np.random.default_rng(0).permutation(cells.counts.shape[0])[: config.num_cells])
    counts = cells.counts[rows][:, columns].tocsr()
    size = pass_size(checkpoint, len(columns), PassOptions())
    predict, hiding = predictor(checkpoint, size.genes), Hiding.of(config.mask_ratio, False, 0)
    parts: dict[float, list[np.ndarray]] = {floor: [] for floor in config.floors}
    for start in range(0, len(rows), size.cells):
        block = counts[start : start + size.cells]
        evidence = evidence_of(block, places[columns], start, CellConditions({}, {}, {}, {}), hiding)
        mean = posterior(predict, checkpoint.tokenizer, evidence).mean.numpy()
        hidden, truth = evidence.hidden.numpy(), block.toarray()
        for floor, found in parts.items():
            kept = np.where(hidden & (mean < floor), 0, mean)
            error = np.abs(np.log1p(kept) - np.log1p(truth)) * hidden
            sums = [(kept != 0).sum(1), (mean * hidden).sum(1), (kept * hidden).sum(1), error.sum(1), hidden.sum(1)]
            found.append(np.stack(sums, axis=1).astype(float))
    return {floor: summary(np.concatenate(found), len(columns), floor) for floor, found in parts.items()}


def summary(sums: np.ndarray, num_genes: int, floor: float) -> dict[str, float]:
    kept, expected, left, error, hidden = sums.T
    return {
        "kept": kept.mean() / num_genes,
        "bytes_per_cell": 8 * kept.mean() if floor else 4.0 * num_genes,
        "left_out": 1 - left.sum() / expected.sum(),
        "mae": error.sum() / hidden.sum(),
        "depth_error": float((1 - left / expected).max()),
    }


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
