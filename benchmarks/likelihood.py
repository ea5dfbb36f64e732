"""Likelihoods of the counts of held-out cells: `mdsc likelihood` beside scVI and independent laws of each gene.

    python benchmarks/likelihood.py --markdown results.md

Reads `shared/data/*.h5ad` beside the repository. scVI takes part where scvi-tools is installed. What is done already
stays, so that the benchmark can be stopped and started again. Flags after `--` go to train.py.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import tyro
from count_baselines import depth_losses, gene_marginal, negative_binomial
from finished_steps import once
from inpaint import digest
from labelled_cells import labelled_split, trained
from likelihood_checks import error_check, error_table, information_table, informations
from real_cells import ROOT, SplitCells
from result_tables import ResultTable, mean_and_sd, write_markdown
from scvi_likelihood import has_scvi, scvi_losses

from mdsc.atomic import replacing
from mdsc.checkpoint import WEIGHTS, load_checkpoint
from mdsc.cli import exit_with
from mdsc.sampling.anndata_likelihood import LikelihoodOptions, score_cells

TOKENIZER = "count"
# What each bound is of. A law given the total count N becomes one of the cell by -log p(N), and the other way round.
OF_CELL, GIVEN_DEPTH = "cell", "given N"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    data: tuple[str, ...] = ("pbmc3k", "kang2018_ifnb")
    """Data sets."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: of the split into training and test cells, and of training."""
    configs: tuple[Path, ...] = (ROOT / "configs" / "laptop.yaml",)
    """Options of training, of a model each."""
    num_genes: int = 2000
    """The most variable genes, chosen on the training cells."""
    num_samples: int = 16
    """Draws of `mdsc likelihood`."""
    scvi_latents: tuple[int, ...] = (10, 30)
    """Numbers of latents of scVI; the one with the best bound on validation cells is taken."""
    work_dir: Path = Path("runs/benchmark_scores")
    """Folder for cells, runs and scores."""
    json: Path | None = None
    """File for the scores."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    end = argv.index("--") if "--" in argv else len(argv)
    config = tyro.cli(BenchmarkConfig, args=argv[:end], description=__doc__)
    results: dict[str, list[dict]] = {}
    for name in config.data:
        for seed in config.seeds:
            folder = config.work_dir.resolve() / f"{name}-seed{seed}"
            if (cells := labelled_split(name, folder, seed, config.num_genes)) is None:
                break
            print(f"{name}, seed {seed}", flush=True)
            result = one_split(config, folder, cells, seed, argv[end + 1 :])
            results.setdefault(name, []).append(result | {"size": cells.size})
    tables = [table_of(name, runs) for name, runs in results.items()]
    if results:
        errors, informed = (
            {name: [run[what] for run in runs] for name, runs in results.items()} for what in ("errors", "informations")
        )
        tables += [error_table(errors, config.num_samples), information_table(informed)]
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps(results) + "\n", encoding="utf-8")
    if config.markdown is not None and tables:
        introduction = (
            "Nats per gene of the raw counts of held-out cells (20%), lower is better; mean ± standard deviation over "
            "seeds, each with its own split."
        )
        write_markdown(config.markdown, "Likelihood of counts", introduction, tables)


def one_split(config: BenchmarkConfig, folder: Path, cells: SplitCells, seed: int, flags: Sequence[str]) -> dict:
    """{"losses": {predictor: [of what, nats per gene of each test cell]}, "depth": -log p(N) per gene, "notes",
    "errors", "informations"}."""
    losses: dict[str, tuple[str, list[float]]] = {}
    notes: dict[str, str] = {}
    for path in config.configs:
        name = f"mdsc {path.stem}"
        run = folder / f"{TOKENIZER}-{path.stem}"
        trained(run, cells, path, TOKENIZER, seed, flags)
        settings = {"weights": digest(run / WEIGHTS), "num_samples": config.num_samples}
        done = once(run / "likelihood.json", settings, lambda run=run: ours(run, cells, config.num_samples))
        losses[name] = (OF_CELL, done["result"]["nll"])
        if path == config.configs[0]:
            checks = {
                "errors": once(
                    run / "errors.json", settings, lambda run=run: error_check(run, cells.test, config.num_samples)
                )["result"],
                "informations": once(
                    run / "informations.json", settings, lambda run=run: informations(run, cells.test)
                )["result"],
            }
        errors = np.array(done["result"]["error"])
        notes[name] = f"error of a cell by its draws {np.sqrt(np.mean(errors**2)):.4f}"
    train, test = (anndata.read_h5ad(path).X.tocsr() for path in (cells.train, cells.test))
    dense_train, dense_test = (counts.toarray().astype(np.int64) for counts in (train, test))
    tokenizer = load_checkpoint(folder / f"{TOKENIZER}-{config.configs[0].stem}").tokenizer
    losses["gene marginal"] = (OF_CELL, gene_marginal(train, test, tokenizer).tolist())
    losses["NB of each gene"] = (OF_CELL, negative_binomial(dense_train, dense_test, by_depth=False).tolist())
    losses["NB by depth"] = (GIVEN_DEPTH, negative_binomial(dense_train, dense_test, by_depth=True).tolist())
    for observed in (True, False) if has_scvi() else ():
        kind = "observed" if observed else "latent"
        settings = {"latents": list(config.scvi_latents), "seed": seed, "size": cells.size}
        done = once(
            folder / f"scvi-{kind}.json",
            settings,
            lambda observed=observed: scvi_losses(
                cells.train, cells.test, observed_size=observed, latents=config.scvi_latents, seed=seed
            ),
        )
        found = done["result"]
        of = GIVEN_DEPTH if observed else OF_CELL
        losses[f"scVI, size {kind}: ELBO"] = (of, found["elbo"])
        losses[f"scVI, size {kind}: weighted"] = (of, found["weighted"])
        notes[f"scVI, size {kind}"] = f"{found['latents']} latents, {found['epochs']} epochs"
    return {"losses": losses, "depth": depth_losses(dense_train, dense_test).tolist(), "notes": notes} | checks


def ours(run: Path, cells: SplitCells, num_samples: int) -> dict:
    scores = score_cells(run, cells.test, LikelihoodOptions(num_samples=num_samples), show_progress=True)
    return {"nll": scores.obs["mdsc_nll"].tolist(), "error": scores.obs["mdsc_nll_se"].tolist()}


def table_of(name: str, runs: Sequence[dict]) -> ResultTable:
    """Predictors by the bound of the cell, in both measures; ours less each, and in how many cells ours is lower."""
    names = list(runs[0]["losses"])

    def of_cell(run: dict, predictor: str) -> np.ndarray:
        of, losses = run["losses"][predictor]
        return np.array(losses) + (np.array(run["depth"]) if of == GIVEN_DEPTH else 0.0)

    means = {one: [of_cell(run, one).mean() for run in runs] for one in names}
    own = min((one for one in names if one.startswith("mdsc")), key=lambda one: np.mean(means[one]))
    rows = []
    for one in sorted(names, key=lambda one: np.mean(means[one])):
        given = [mean - np.mean(run["depth"]) for mean, run in zip(means[one], runs, strict=True)]
        less = [ours - other for ours, other in zip(means[own], means[one], strict=True)]
        lower = np.mean([np.mean(of_cell(run, own) < of_cell(run, one)) for run in runs])
        beside = ["", ""] if one == own else [mean_and_sd(less, signed=True), f"{lower:.0%}"]
        rows.append([one, runs[0]["losses"][one][0], mean_and_sd(means[one]), mean_and_sd(given), *beside])
    size = runs[0]["size"]
    notes = "; ".join(f"{key}: {text}" for key, text in runs[0]["notes"].items())
    return ResultTable(
        f"{name}, {size['train']:,} training and {size['test']:,} test cells x {size['genes']:,} genes, "
        f"{len(runs)} seeds",
        ["predictor", "law of", "-log p(cell)", "-log p(cell given N)", f"{own} less it", "lower in cells"],
        rows,
        f"The first seed: {notes}.",
    )


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
