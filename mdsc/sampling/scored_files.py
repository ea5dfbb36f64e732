"""Files of cells with their likelihoods: a copy of the input with more columns in obs, or a table of these alone."""

import time
from itertools import chain

from mdsc.atomic import replacing
from mdsc.checkpoint import given_or_newest
from mdsc.errors import UserError
from mdsc.progress import lines_on_console
from mdsc.sampling.anndata_cells import listed_genes
from mdsc.sampling.anndata_files import check_output
from mdsc.sampling.anndata_likelihood import CellScores, LikelihoodOptions, score_cells
from mdsc.sampling.annotated_copy import annotated_copy
from mdsc.sampling.conditions import condition_pairs
from mdsc.sampling.likelihood_command import LikelihoodConfig

TABLES = (".csv", ".parquet")


def score(config: LikelihoodConfig) -> CellScores:
    """Do it, write it, and say what came out."""
    say = lines_on_console()
    is_table = config.output.suffix in TABLES
    if not is_table and config.output.suffix != ".h5ad":
        raise UserError(f"--output: {config.output} ends in none of .h5ad, {', '.join(TABLES)}.")
    check_output(config.output.with_suffix(".h5ad"), config.input)
    options = LikelihoodOptions(
        target_genes=listed_genes(config.target_genes, "--target-genes"),
        given_genes=listed_genes(config.given_genes, "--given-genes"),
        information=config.information,
        estimator=config.estimator,
        num_samples=config.num_samples,
        seed=config.seed,
    )
    folder = given_or_newest(config.checkpoint, say)
    started = time.monotonic()
    scores = score_cells(
        folder,
        config.input,
        options,
        config.passes,
        layer=config.layer,
        condition=condition_pairs(chain(*config.condition)),
        say=say,
        show_progress=True,
    )
    if is_table:
        _write_table(scores, config)
    else:
        with annotated_copy(config.input, config.output) as copy:
            for name, values in scores.obs.items():
                copy.add_column("obs", name, values)
            copy.add_uns("mdsc_likelihood", scores.settings)
    say(scores.said)
    say(f"wrote {config.output}: {', '.join(scores.obs)} ({time.monotonic() - started:.0f} s)")
    return scores


def _write_table(scores: CellScores, config: LikelihoodConfig) -> None:
    import pandas as pd

    table = pd.DataFrame(scores.obs, index=pd.Index(scores.names, name="cell"))
    with replacing(config.output) as beside:
        table.to_csv(beside) if config.output.suffix == ".csv" else table.to_parquet(beside)
