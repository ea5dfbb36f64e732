"""The HTML report of predicted perturbations: verdicts, the table, pictures, settings."""

from collections.abc import Mapping

from mdsc.evaluation.perturb_baselines import ALL, ORACLE
from mdsc.evaluation.perturb_estimates import PerturbScores
from mdsc.evaluation.perturb_plot import Effects, draw_effects, draw_metrics
from mdsc.evaluation.perturb_table import CAPTION, HEADINGS, table_rows, verdicts
from mdsc.evaluation.report import Report, ReportImage, ReportTable, Section, new_figure, settings_section


def perturb_report(scores: PerturbScores, effects: Effects, settings: Mapping) -> Report:
    told = [(name, baseline.says) for name, baseline in ALL.items() if name in scores.values]
    told.append((ORACLE, "half of the true test cells against the other half"))
    sections = [
        Section(
            "What it says",
            verdicts=verdicts(scores),
            paragraphs=(
                "A model that is no better than the mean of the training perturbations has learnt what perturbation "
                "does in general, and nothing of the one that was asked for: PearsonDelta-pert and the discrimination "
                "score tell these apart, PearsonDelta does not.",
            ),
        ),
        Section(
            "All metrics",
            tables=[
                ReportTable(
                    ("method", *HEADINGS.values()), table_rows(scores), caption=CAPTION, ours=list(scores.models)
                )
            ],
        ),
        Section("Pictures", images=[_metrics(scores), _effects(effects)]),
        Section("Baselines", facts=told),
        settings_section(settings),
    ]
    subtitle = f"{', '.join(scores.models)} on {len(scores.units)} test perturbations of {settings['real']}"
    return Report("Predicted perturbations beside plain baselines", subtitle, sections)


def _metrics(scores: PerturbScores) -> ReportImage:
    figure = new_figure(13.0, 1.2 + 0.3 * len(scores.values))
    draw_metrics(figure, scores)
    return ReportImage.of(
        figure,
        alt="Headline metrics by method, each with its bootstrap interval.",
        caption="Means over test perturbations and 95% intervals. Red: predictions; green: half of the true cells.",
    )


def _effects(effects: Effects) -> ReportImage:
    figure = new_figure(13.0, 5.5)
    draw_effects(figure, effects)
    return ReportImage.of(
        figure,
        alt="Scatter plot of true changes of genes by predicted ones, one panel for each prediction.",
        caption="On the line the change is predicted as it is.",
    )
