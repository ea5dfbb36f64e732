"""The HTML report of filling in: who wins, all metrics, calibration, zeros, one cell, the loss, all settings."""

from collections.abc import Mapping
from pathlib import Path

from mdsc.evaluation.calibration import GROUPS
from mdsc.evaluation.inpaint import MODEL, InpaintResult
from mdsc.evaluation.plots import (
    METRICS,
    against_ratio,
    draw_unmasking,
    loss_curve,
    pit_histograms,
    read_lines,
    zero_rates,
)
from mdsc.evaluation.report import (
    Report,
    ReportImage,
    ReportTable,
    Section,
    Verdict,
    new_figure,
    number,
    settings_section,
)
from mdsc.evaluation.table import (
    CALIBRATION_CAPTION,
    CALIBRATION_HEADINGS,
    CAPTION,
    HEADINGS,
    best_values,
    by_likelihood,
    calibration_text,
    verdicts,
)
from mdsc.evaluation.unmasking import Unmasking

IN_PIT = (MODEL, "svd", "knn", "gene_marginal")


def inpaint_report(
    result: InpaintResult, settings: Mapping, *, title: str, metrics_file: Path, unmasking: Unmasking
) -> Report:
    said = [Verdict(text, "bad" if "BEATS" in text else "good") for text in verdicts(result)]
    introduction = (
        f"Of {settings['cells']:,} cells that the model was not trained on, a share of the {settings['genes']:,} genes "
        "was hidden. The model and every baseline said how likely each count is, seeing what was left; they are scored "
        "on the hidden counts alone, the same for all. nll is the column to read first: how many nats a hidden count "
        "costs, less being better."
    )
    sections = [
        Section("What it says", verdicts=said, paragraphs=[introduction], images=[_ratios(result)]),
        Section("All metrics", tables=[_metrics(result, ratio) for ratio in result.scores]),
        Section(
            "Calibration",
            paragraphs=[
                "Are the laws as sure as they may be? Of right laws the PIT is flat, and has 50% of its mass in the "
                "central half. That holds of all hidden positions, most of them zeros that are easy to foresee, and of "
                "those where the predictor expects a count of 1 or more, where it says more. A law can be calibrated "
                "and know little: that is what nll and the width of intervals tell."
            ],
            tables=[_calibration(result, ratio) for ratio in result.scores],
            images=[_pit(result), _zeros(result)],
        ),
        Section("One cell as it is filled in", images=[_one_cell(unmasking)]),
    ]
    if metrics_file.is_file() and (lines := read_lines(metrics_file)):
        sections.append(Section("Training", images=[_training(lines)]))
    sections.append(settings_section(settings))
    return Report("Filling in hidden counts", title, sections)


def _metrics(result: InpaintResult, ratio: float) -> ReportTable:
    by_name = result.scores[ratio]
    metrics = {name: scores.metrics() for name, scores in by_name.items()}
    best = best_values(metrics)
    rows = []
    for name in by_likelihood(metrics):
        texts = [number(metrics[name][metric]) + " *" * (metrics[name][metric] == best[metric]) for metric in HEADINGS]
        if by_name[name].calibration is not None:
            texts[0] += f" ± {number(by_name[name].standard_errors['nll'])}"
        rows.append([name, *texts])
    return ReportTable((f"{ratio:.0%} hidden", *HEADINGS.values()), rows, caption=CAPTION, ours=[MODEL])


def _calibration(result: InpaintResult, ratio: float) -> ReportTable:
    columns = [(group, metric) for group in GROUPS for metric in CALIBRATION_HEADINGS]
    headings = [("" if group == GROUPS[0] else "E>=1 ") + CALIBRATION_HEADINGS[metric] for group, metric in columns]
    rows = []
    for name, scores in result.scores[ratio].items():
        if scores.calibration is None:
            continue
        values, errors = scores.calibration_metrics
        texts = [calibration_text(metric, values[group][metric]) for group, metric in columns]
        for place, (group, metric) in enumerate(columns):
            if "coverage" in metric and texts[place] != "n/a":
                texts[place] += f" ± {100 * errors[group][metric]:.1f}"
        rows.append([name, *texts])
    return ReportTable((f"{ratio:.0%} hidden", *headings), rows, caption=CALIBRATION_CAPTION, ours=[MODEL])


def _ratios(result: InpaintResult) -> ReportImage:
    figure = new_figure(10.5, 3.6)
    panels = figure.subplots(1, len(METRICS))
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        against_ratio(axes, result, metric, label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return ReportImage.of(
        figure,
        alt="Lines of nll, accuracy and mean absolute error against the share that is hidden, for all predictors.",
        caption="Against the share that is hidden; the numbers are in the tables below.",
    )


def _pit(result: InpaintResult) -> ReportImage:
    names = [name for name in IN_PIT if name in result.scores[max(result.scores)]]
    figure = new_figure(2.7 * len(names) + 0.6, 4.6)
    pit_histograms(figure, result, names)
    return ReportImage.of(
        figure,
        alt="Histograms of the PIT of hidden counts for the model and baselines; flat ones are calibrated.",
        caption=f"PIT, {max(result.scores):.0%} hidden: a hump means laws that are too wide, a valley too narrow "
        "ones, a slope counts that are foretold too high or too low.",
    )


def _zeros(result: InpaintResult) -> ReportImage:
    figure = new_figure(6.2, 5.4)
    zero_rates(figure, result)
    return ReportImage.of(
        figure,
        alt="Predicted against observed share of zeros by decile of gene expression, and their difference.",
        caption="Ten groups of genes by mean expression; the band is 1%.",
    )


def _one_cell(unmasking: Unmasking) -> ReportImage:
    figure = new_figure(10.0, 5.0)
    draw_unmasking(figure, unmasking)
    return ReportImage.of(
        figure,
        alt="A cell's counts, gene by gene, as the sampler fills them in from top to bottom; below, the truth.",
        caption="The cell of median depth. A draw is one possible cell, and is not meant to equal the truth.",
    )


def _training(lines: list[dict]) -> ReportImage:
    figure = new_figure(7.0, 3.8)
    loss_curve(figure.subplots(), lines)
    return ReportImage.of(
        figure, alt="Training and validation loss against the step.", caption="As the run wrote it: metrics.jsonl."
    )
