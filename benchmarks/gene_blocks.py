"""All genes of a cell at once against blocks of them, for a transformer that was trained on 1,024 genes a cell.

    python benchmarks/gene_blocks.py --checkpoints runs/dit --input test.h5ad --markdown gene_blocks.md

Cells are hidden by 80%, and the nll of hidden counts is that of one pass. All ways see the same hidden positions.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from result_tables import ResultTable, write_markdown

from mdsc.atomic import replacing
from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.cli import exit_with
from mdsc.data.anndata_counts import read_counts
from mdsc.data.genes import known_columns
from mdsc.diffusion.evidence import Evidence
from mdsc.errors import UserError
from mdsc.evaluation.predictor import whole_cell_tokens
from mdsc.sampling.anndata_inpainting import evidence_of
from mdsc.sampling.conditions import CellConditions
from mdsc.sampling.hiding import Hiding

ALONE, WHOLE = "pathway alone", "all at once"


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    checkpoints: tuple[Path, ...]
    """Runs with --model.backbone dit."""
    input: Path
    """h5ad file of cells that they were not trained on."""
    num_cells: int = 48
    """Cells, drawn evenly."""
    num_whole: int = 8
    """Of them, cells that are also given all at once, which takes long."""
    sizes: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Genes of a block."""
    mask_ratio: float = 0.8
    """Share of the genes that is hidden."""
    json: Path | None = None
    """File for the numbers."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(BlocksConfig, args=argv, description=__doc__)
    torch.set_num_threads(1)
    results = {str(path): score(load_checkpoint(path), config) for path in config.checkpoints}
    tables = [table(name, ways, config) for name, ways in results.items()]
    for one in tables:
        one.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if config.markdown is not None:
        introduction = (
            f"nll: nats per hidden count, {config.mask_ratio:.0%} hidden, one pass. s: CPU seconds of one thread."
        )
        write_markdown(config.markdown, "Blocks of genes", introduction, tables)


@torch.inference_mode()
def score(checkpoint: Checkpoint, config: BlocksConfig) -> dict[str, dict]:
    """For each way: nll of each cell, of its nonzero counts, mean p(0) less the zero rate, and seconds a cell."""
    if checkpoint.model.config.backbone != "dit" or not checkpoint.model.config.num_layers:
        raise UserError("--checkpoints: only a transformer over genes (--model.backbone dit) needs blocks")
    cells = read_counts(config.input)
    places = checkpoint.vocabulary.match_var(cells.var, str(config.input))
    columns = known_columns(places)
    rows = np.sort(np.random.default_rng(0).permutation(cells.counts.shape[0])[: config.num_cells])
    counts = cells.counts[rows][:, columns].tocsr()
    tokens = whole_cell_tokens(counts, checkpoint.tokenizer)
    ways: dict[str, dict] = {ALONE: {"pathway_only": True}, WHOLE: {}}
    ways |= {f"blocks of {size:,}": {"genes_per_pass": size} for size in config.sizes}
    found: dict[str, dict] = {name: {"nll": [], "nonzero": [], "zero": [], "seconds": 0.0} for name in ways}
    hiding = Hiding.of(config.mask_ratio, False, 0)
    for row in range(len(rows)):
        evidence = evidence_of(counts[row], places[columns], row, CellConditions({}, {}, {}, {}), hiding)
        target = torch.from_numpy(tokens[row].astype(np.int64))
        for name, options in ways.items():
            if name == WHOLE and row >= config.num_whole:
                continue
            start = time.process_time()
            logits = predicted(checkpoint, evidence, options)
            found[name]["seconds"] += time.process_time() - start
            log_p = torch.log_softmax(logits.double(), dim=-1)
            nll, hidden = -log_p.gather(1, target[:, None])[:, 0], evidence.hidden[0]
            found[name]["nll"].append(nll[hidden].mean().item())
            found[name]["nonzero"].append(nll[hidden & (target > 0)].mean().item())
            found[name]["zero"].append((log_p[hidden, 0].exp() - (target[hidden] == 0).double()).mean().item())
    return {name: way | {"seconds": way["seconds"] / len(way["nll"])} for name, way in found.items()}


def predicted(checkpoint: Checkpoint, evidence: Evidence, options: dict) -> torch.Tensor:
    """Logits (genes, V) of one cell."""

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        return checkpoint.model(gene_ids, tokens, counts, None, **options).logits

    return evidence.predict(predict, checkpoint.tokenizer)[0]


def table(name: str, ways: dict[str, dict], config: BlocksConfig) -> ResultTable:
    """Differences are paired by cell with blocks of the second size."""
    reference = f"blocks of {config.sizes[min(1, len(config.sizes) - 1)]:,}"
    base = np.array(ways[reference]["nll"])
    rows = []
    for way, found in ways.items():
        nll = np.array(found["nll"])
        difference = nll - base[: len(nll)]
        error = difference.std(ddof=1) / len(nll) ** 0.5
        rows.append(
            [
                way, str(len(nll)), f"{nll.mean():.5f}", f"{difference.mean():+.5f} ± {error:.5f}",
                f"{np.mean(found['nonzero']):.3f}", f"{np.mean(found['zero']):+.4f}", f"{found['seconds']:.2f}",
            ]
        )  # fmt: skip
    columns = (
        "",
        "cells",
        "nll",
        f"difference from {reference}",
        "nll of nonzeros",
        "p(0) too high by",
        "s/cell",
    )
    return ResultTable(Path(name).name, columns, rows)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
