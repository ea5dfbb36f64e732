"""`mdsc evaluate perturb`, `python evaluate.py perturb`: predicted perturbed cells beside real ones and baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdsc.config.flags import parse_flags
from mdsc.data.gene_set_file import read_gmt, sets_of_genes
from mdsc.data.level_features import read_features
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.errors import UserError
from mdsc.evaluation.command_output import plain_console, versions, write_scores
from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_expression import read_cells
from mdsc.evaluation.perturb_plot import effects_of, save_plot
from mdsc.evaluation.perturb_scores import score
from mdsc.evaluation.perturb_table import baselines_left_out, scores_table, verdicts
from mdsc.evaluation.perturb_task import PerturbTask, Prediction, predicted_rows
from mdsc.evaluation.perturb_units import Labels
from mdsc.evaluation.report import check_report_path

LEAST_GENES = 25


@dataclass(frozen=True, kw_only=True)
class PerturbEvaluationConfig:
    real: Path
    """h5ad file of real cells, raw counts best: training perturbations, test perturbations and controls."""
    predicted: tuple[str, ...]
    """h5ad files of predicted cells, what sample.py --perturbation writes; NAME=FILE names them in the table."""
    perturbation_column: str = COLUMN
    """Column of obs."""
    control_label: str = CONTROL
    """What the column says of control cells."""
    context_column: str | None = None
    """Column of obs, e.g. cell_type: effects are taken within each of its values."""
    split_column: str = "split"
    """Column of the real cells' obs: train, val or test. Where there is none, what was predicted is the test part."""
    gene_embeddings: Path | None = None
    """Vectors by gene or perturbation (.parquet, .csv, .tsv, .safetensors), for ridge, knn and nearest_cells."""
    gmt: Path | None = None
    """Gene sets, e.g. GO: for the random forest."""
    layer: str | None = None
    """Layer of the real cells; by default X."""
    predicted_layer: str | None = None
    """Layer of the predictions; by default X."""
    means_layer: str | None = None
    """Layer of the predictions that pseudobulks are taken from, e.g. expected; by default the one of the cells."""
    seed: int = 0
    """Seeds subsampling, baselines, halves and the bootstrap."""
    num_bootstrap: int = 1000
    """Resamplings of the perturbations."""
    json: Path | None = None
    """File for all scores, as JSON."""
    report: Path | None = None
    """PNG file of pictures, or HTML file that holds all of it."""
    cell_eval: Path | None = None
    """Folder for the files and results of the cell-eval package (pip install "mdsc[eval]")."""


def main(argv: Sequence[str]) -> None:
    perturb(parse_flags(PerturbEvaluationConfig, argv, __doc__, prog="mdsc evaluate perturb"))


def perturb(config: PerturbEvaluationConfig) -> dict:
    """Score, print the table, write what was asked for; gives what the JSON holds."""
    console = plain_console()
    check_report_path(config.report, [".png", ".html"])
    if config.num_bootstrap < 1:
        raise UserError(f"--num-bootstrap is {config.num_bootstrap}; it takes 1 or more.")
    if config.cell_eval is not None:
        from mdsc.evaluation.perturb_cell_eval import check_cell_eval

        check_cell_eval()
    task, predictions = read_task(config, console.print)
    scores = score(task, predictions, seed=config.seed, num_bootstrap=config.num_bootstrap)
    if left_out := baselines_left_out(scores):
        console.print(f"baselines that lack what they need here are left out: {', '.join(left_out)}")
    console.print(scores_table(scores), soft_wrap=False)
    for verdict in verdicts(scores):
        console.print(verdict.text)
    found = {**scores.to_json(), "settings": _settings(config, scores)}
    write_scores(found, config.json, console.print)
    if config.report is not None:
        effects = effects_of(task, predictions)
        if config.report.suffix.lower() == ".png":
            save_plot(config.report, scores, effects)
        else:
            from mdsc.evaluation.perturb_report import perturb_report

            perturb_report(scores, effects, found["settings"]).save(config.report)
        console.print(f"wrote {config.report}")
    if config.cell_eval is not None:
        from mdsc.evaluation.perturb_cell_eval import run_cell_eval

        for prediction in predictions:
            folder = config.cell_eval / prediction.name if len(predictions) > 1 else config.cell_eval
            run_cell_eval(task, prediction, folder, say=console.print)
    return found


def read_task(config: PerturbEvaluationConfig, say: Callable[[str], None]) -> tuple[PerturbTask, list[Prediction]]:
    """Over the genes that all files have."""
    files = named_files(config.predicted)
    real = read_cells(config.real)
    predicted = {name: read_cells(path) for name, path in files.items()}
    genes = set(map(str, real.var_names)).intersection(*(map(str, one.var_names) for one in predicted.values()))
    if len(genes) < min(LEAST_GENES, real.n_vars):
        names = ", ".join(map(str, [config.real, *files.values()]))
        raise UserError(
            f"{names} have {len(genes)} genes of {real.n_vars:,} in common, and {LEAST_GENES} are needed: "
            "name the genes alike (var_names, symbols)."
        )
    if len(genes) < real.n_vars:
        say(f"{real.n_vars - len(genes):,} of {real.n_vars:,} genes are left out, because a prediction lacks them")
    labels = Labels(
        perturbation_column=config.perturbation_column,
        control_label=config.control_label,
        context_column=config.context_column,
    )
    test = None
    if config.split_column not in real.obs:
        test = {unit for name, one in predicted.items() for unit in predicted_rows(one, labels, str(files[name]))}
        say(
            f"{config.real} has no column obs[{config.split_column!r}] (--split-column): what was predicted is the "
            "test part, and all other perturbations are the training part"
        )
    features = None if config.gene_embeddings is None else read_features(config.gene_embeddings)
    task = PerturbTask.of_anndata(
        real,
        perturbation_column=config.perturbation_column,
        control_label=config.control_label,
        context_column=config.context_column,
        split_column=config.split_column,
        predicted=test,
        genes=genes,
        layer=config.layer,
        vectors=None if features is None else dict(zip(features.names, features.values, strict=True)),
        gene_sets=None if config.gmt is None else sets_of_genes(read_gmt(config.gmt)),
        name=str(config.real),
        say=say,
    )
    del real
    controls = sum(len(task.controls(context)) for context in sorted({unit.context for unit in task.units}))
    say(
        f"{len(task.units)} test and {len(task.training_units)} training perturbations, {controls:,} control cells, "
        f"{len(task.genes):,} genes"
    )
    options = {"layer": config.predicted_layer, "means_layer": config.means_layer, "say": say}
    return task, [_named(Prediction.of_anndata(predicted[n], task, name=str(files[n]), **options), n) for n in files]


def named_files(texts: Sequence[str]) -> dict[str, Path]:
    """["pred.h5ad", "big=other.h5ad"] -> {"pred": ..., "big": ...}."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).stem, text
        if name in found or not name:
            raise UserError(f"--predicted: two files are called {name!r}: name them apart, NAME=FILE.")
        found[name] = Path(path)
    return found


def _named(prediction: Prediction, name: str) -> Prediction:
    return Prediction(name, prediction.cells, prediction.means)


def _settings(config: PerturbEvaluationConfig, scores: PerturbScores) -> dict:
    return {
        "real": str(config.real),
        "predicted": [str(text) for text in config.predicted],
        "gene_embeddings": None if config.gene_embeddings is None else str(config.gene_embeddings),
        "gmt": None if config.gmt is None else str(config.gmt),
        **scores.settings,
        "num_bootstrap": config.num_bootstrap,
        "versions": versions("numpy", "scipy", "scikit-learn"),
    }
