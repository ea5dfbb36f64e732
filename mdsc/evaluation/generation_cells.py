"""The three sets of cells that the scores of generation need, over the genes that all of them have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdsc.data.anndata_counts import open_counts
from mdsc.data.genes import ENSEMBL_COLUMNS, GeneVocabulary
from mdsc.errors import UserError
from mdsc.evaluation.cell_sources import SourceCells, read_h5ad
from mdsc.evaluation.generation_scores import LEAST_CELLS

MOST_TRAINING_CELLS = 5000
LEAST_GENES = 3


def read_sets(
    real_path: Path,
    generated_path: Path,
    train_path: Path | None,
    *,
    layer: str | None,
    column: str | None,
    most_cells: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[SourceCells, SourceCells, SourceCells]:
    """Real, generated and training cells, all over the genes that all have, in the real cells' order.

    layer: of the real and training cells; column: of obs, which the real and generated cells must have. Without
    training cells a random half of the real ones stands for them.
    """
    with open_counts(real_path, layer, obs_columns=()) as source:
        ensembl = next((source.var[name].astype(str) for name in ENSEMBL_COLUMNS if name in source.var), None)
        symbols = source.var.index.astype(str).tolist()
    vocabulary = GeneVocabulary.of(symbols, None if ensembl is None else ensembl.tolist())
    columns = () if column is None else (column,)
    most = 2 * most_cells * (2 if train_path is None else 1)
    real = read_h5ad(real_path, vocabulary, layer=layer, conditions=columns, most=most)
    generated = read_h5ad(generated_path, vocabulary, conditions=columns, most=most)
    for flag, cells in (("--real", real), ("--generated", generated)):
        if column is not None and column not in cells.conditions:
            raise UserError(f"--by: {cells.name} ({flag}) has no column obs[{column!r}].")
    if train_path is None:
        if real.counts.shape[0] < 6 * LEAST_CELLS:
            raise UserError(
                f"--real: {real.name} has {real.counts.shape[0]} cells, and without --train a part of them stands for "
                f"the training cells; give --train, or {6 * LEAST_CELLS} cells or more."
            )
        say("--train is not given: a third of the real cells, drawn at random, stands for the training cells")
        order = np.random.default_rng(seed).permutation(real.counts.shape[0])
        third = real.counts.shape[0] // 3
        train, real = (real.of_rows(np.sort(rows)) for rows in (order[:third], order[third:]))
    else:
        train = read_h5ad(train_path, vocabulary, layer=layer, conditions=columns, most=MOST_TRAINING_CELLS)

    places = np.intersect1d(np.intersect1d(real.places, generated.places), train.places)
    sets = (real, generated, train)
    if len(places) < LEAST_GENES:
        names = ", ".join(dict.fromkeys(cells.name for cells in sets))
        raise UserError(f"{names} have {len(places)} genes in common; {LEAST_GENES} are needed.")
    for kind, cells in zip(("real", "generated", "training"), sets, strict=True):
        said = f"{cells.counts.shape[0]:,} {kind} cells of {cells.name}"
        if left_out := len(cells.places) + len(cells.unknown_genes) - len(places):
            said += f"; {left_out:,} of its genes are left out, because another file lacks them"
        if empty := int((np.diff(cells.counts.indptr) == 0).sum()):
            said += f"; {empty:,} cells have no counts, and are scored as they are"
        say(said)
    say(f"{len(places):,} genes are compared")
    return tuple(cells.on(places) for cells in sets)
