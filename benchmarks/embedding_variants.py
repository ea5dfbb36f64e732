"""What was tried for `mdsc embed`: depth left in or taken out, and units of the factors, by kNN label transfer.

    python benchmarks/embedding_variants.py

Takes the split and the trained model of one seed of benchmarks/embedding.py, and makes them where they are not there.
The choice of the default was made on these cells (seed 0), so that they are no test of it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import torch
import tyro
from embedding import BASELINE, principal_components, scored
from labelled_cells import DATA, labelled_split, trained
from real_cells import ROOT
from result_tables import ResultTable

from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.cli import exit_with
from mdsc.data.batch import batch_from_csr
from mdsc.model.factor_posterior import factor_posterior
from mdsc.sampling.embedding import at_mean_depth, embed_cells, layers_of, metric_root

CELLS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class VariantsConfig:
    data: tuple[str, ...] = ("pbmc3k", "kang2018_ifnb")
    """Data sets."""
    seed: int = 0
    """Of the split and of training."""
    config: Path = ROOT / "configs" / "laptop.yaml"
    """Options of training."""
    work_dir: Path = Path("runs/benchmark_scores")
    """Folder for cells and runs."""


def main(argv: Sequence[str]) -> None:
    end = argv.index("--") if "--" in argv else len(argv)
    config = tyro.cli(VariantsConfig, args=argv[:end], description=__doc__)
    accuracy: dict[str, dict[str, float]] = {}
    for name in config.data:
        folder = config.work_dir.resolve() / f"{name}-seed{config.seed}"
        if (cells := labelled_split(name, folder, config.seed, 2000)) is None:
            continue
        run = folder / f"count-{config.config.stem}"
        trained(run, cells, config.config, "count", config.seed, argv[end + 1 :])
        train, test = (anndata.read_h5ad(path) for path in (cells.train, cells.test))
        labels = [part.obs[DATA[name].label].to_numpy() for part in (train, test)]
        checkpoint = load_checkpoint(run)
        one, other = (variants(checkpoint, part) for part in (train, test))
        one[BASELINE], other[BASELINE] = principal_components(train, test)
        for variant in list(one):
            mean, sd = one[variant].mean(axis=0), one[variant].std(axis=0)
            pairs = {variant: (one[variant], other[variant])}
            pairs[f"{variant}, standardised"] = (one[variant] - mean) / sd, (other[variant] - mean) / sd
            for what, pair in pairs.items():
                accuracy.setdefault(what, {})[name] = scored(*pair, *labels)["accuracy"]
    rows = [[what, *(f"{of[name]:.4f}" for name in of)] for what, of in accuracy.items()]
    table = ResultTable(f"Accuracy, {config.config.stem}, seed {config.seed}", ["embedding", *config.data], rows)
    table.show()
    print(table.markdown())


@torch.no_grad()
def variants(checkpoint: Checkpoint, cells) -> dict[str, np.ndarray]:
    """Embeddings of cells, by what they are."""
    found: dict[str, list[np.ndarray]] = {}
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    places = checkpoint.vocabulary.match_var(cells.var)
    evidence, state = model.gene_evidence, model.cell_state
    loadings, precision = evidence.loadings, evidence.precision
    noise, plain = metric_root(loadings, precision), metric_root(loadings, torch.ones_like(precision))
    for start in range(0, cells.n_obs, CELLS_AT_ONCE):
        batch = batch_from_csr(cells.X[start : start + CELLS_AT_ONCE].tocsr(), places, tokenizer)
        everything = torch.ones_like(batch.counts, dtype=torch.float32)
        one = {f"layer {layer}": embed_cells(model, tokenizer, batch, layer) for layer in layers_of(model.config)}
        for depth, counts in (
            ("depth left in", batch.counts.float()),
            ("depth taken out", at_mean_depth(model, batch)),
        ):
            residual = counts.log1p() - evidence.gene_mean[batch.gene_ids]
            prior = torch.ones(loadings.shape[1])
            z, _ = factor_posterior(residual, loadings[batch.gene_ids], precision[batch.gene_ids], prior)
            one[f"factors, {depth}, unit the prior"] = z
            one[f"factors, {depth}, unit the loadings"] = z @ plain
            one[f"factors, {depth}, unit the noise"] = z @ noise
            one[f"trained factors, {depth}, unit the prior"] = state.pool(batch.gene_ids, counts, everything)
        output = model(batch.gene_ids, batch.tokens, batch.counts, None)
        one["bent state"] = output.cell_state
        for what, values in one.items():
            found.setdefault(what, []).append(values.numpy())
    return {what: np.concatenate(values) for what, values in found.items()}


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
