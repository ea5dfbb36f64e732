"""The table of predicted perturbations beside baselines, and one plain sentence for each headline metric."""

from typing import TYPE_CHECKING

from mdsc.evaluation.perturb_baselines import ALL
from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_metrics import HEADLINES, HIGHER_IS_BETTER
from mdsc.evaluation.report import NOT_DEFINED, Verdict, number

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {
    "pearson_delta": "PearsonDelta ↑",
    "pearson_delta_pert": "PearsonDelta-pert ↑",
    "delta20": "Delta20 ↑",
    "delta20_no_target": "Delta20 -target ↑",
    "mse": "MSE ↓",
    "mae": "MAE ↓",
    "mse_de": "MSE, DE ↓",
    "discrimination_l1": "discr. L1 ↑",
    "discrimination_cosine": "discr. cos ↑",
    "de_overlap": "DE overlap ↑",
    "e_distance": "E-distance ↓",
    "mmd2": "MMD2 ↓",
}
WITH_INTERVAL = ("pearson_delta", "pearson_delta_pert", "e_distance")
"""In the table; the JSON has those of all."""
CAPTION = (
    "Means over test perturbations, of log1p(counts per 10,000); [95% bootstrap interval over perturbations]; (k/N): "
    "defined for k of N. PearsonDelta: of effects against real controls; -pert: less the mean effect of the training "
    "perturbations, the headline; Delta20: of the 20 genes of greatest |t|; MSE, DE: weighted by |t|; discr.: "
    "1 - rank / N, target gene left out; E-distance (Euclidean), MMD2: unbiased, in the PCA space of the training "
    "cells. n/a: not defined, as a correlation with something constant. split_half: half of the true cells against the "
    "other half, with the noise of both, so that it is no strict bound: where it is r, a perfect mean has about "
    "sqrt(2r / (1 + r)). * best but the oracle"
)


def table_rows(scores: PerturbScores) -> list[list[str]]:
    """Method, then one cell for each of HEADINGS; models first."""
    rows = []
    for method in (*scores.models, *scores.baselines):
        rows.append([method, *(_text(scores, method, metric) for metric in HEADINGS)])
    return rows


def scores_table(scores: PerturbScores) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    rows = table_rows(scores)
    for place, row in enumerate(rows):
        is_model = place < len(scores.models)
        ends = place == len(scores.models) - 1 or place == len(rows) - 2
        table.add_row(*row, style="bold cyan" if is_model else "", end_section=ends)
    return table


def verdicts(scores: PerturbScores) -> list[Verdict]:
    """For each model and headline metric: is it at least as good as the best baseline, by the paired interval."""
    return [
        verdict
        for model in scores.models
        for metric in HEADLINES
        if (verdict := _verdict(scores, model, metric)) is not None
    ]


def _verdict(scores: PerturbScores, model: str, metric: str) -> Verdict | None:
    ours, best = scores.estimate(model, metric), scores.best_baseline(metric)
    name = f"{metric}, {model}: "
    if ours is None:
        return Verdict(f"{name}n/a for all {len(scores.units)} perturbations.", "bad" if best else "")
    text = f"{name}{number(ours.mean)}"
    if best is None:
        return Verdict(f"{text}; no baseline is defined.")
    gap = scores.difference(model, best, metric)
    theirs = scores.estimate(best, metric)
    if gap is None:
        return Verdict(
            f"{text}; the best baseline, {best} ({number(theirs.mean)}), is defined for other perturbations."
        )
    text += f", the best baseline, {best}, {number(theirs.mean)}; difference {number(gap.mean)}"
    if gap.interval is None:
        return Verdict(f"{text}, of one perturbation: nothing follows from it.")
    low, high = gap.interval
    text += f" [{number(low)}, {number(high)}] over {gap.units} perturbations: "
    worst, most = (low, high) if HIGHER_IS_BETTER[metric] else (-high, -low)
    if worst > 0:
        return Verdict(f"{text}the model is better.", "good")
    if most < 0:
        return Verdict(f"{text}the model is WORSE.", "bad")
    return Verdict(f"{text}no difference can be told.")


def _text(scores: PerturbScores, method: str, metric: str) -> str:
    found = scores.estimate(method, metric)
    if found is None:
        return NOT_DEFINED
    text = number(found.mean, 3 if metric != "mmd2" else 4)
    if metric in WITH_INTERVAL and found.interval is not None:
        text += f" [{number(found.interval[0], 3)}, {number(found.interval[1], 3)}]"
    if found.units < len(scores.units):
        text += f" ({found.units}/{len(scores.units)})"
    if method == scores.best(metric, tuple(scores.values)):
        text += " *"
    return text


def baselines_left_out(scores: PerturbScores) -> list[str]:
    """Those that the task lacks something for."""
    return [name for name in ALL if name not in scores.values]
