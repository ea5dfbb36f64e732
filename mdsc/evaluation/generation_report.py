"""The HTML report of generated cells: tables, verdicts, PCA of real and generated cells, genes, depths."""

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp

from mdsc.evaluation.generation_baselines import negative_binomial
from mdsc.evaluation.generation_gene_fits import gene_moments
from mdsc.evaluation.generation_scores import GENERATED, QUICK, GenerationResult
from mdsc.evaluation.generation_space import ExpressionSpace
from mdsc.evaluation.generation_table import CAPTION, ROWS, level_texts, table_rows, verdicts
from mdsc.evaluation.report import Report, ReportImage, ReportTable, Section, new_figure, settings_section

COLOURS = {"real": "#4c565f", "generated": "#c1272d", "negative binomial": "#0b6e99"}
MOST_POINTS = 1000


def generation_report(
    result: GenerationResult,
    by: Mapping[str, GenerationResult],
    settings: Mapping,
    *,
    real: sp.csr_matrix,
    generated: sp.csr_matrix,
    train: sp.csr_matrix,
) -> Report:
    rng = np.random.default_rng(0)
    number = min(MOST_POINTS, len(real.indptr) - 1, len(generated.indptr) - 1)
    sets = {
        "real": real[rng.permutation(real.shape[0])[:number]],
        "generated": generated[rng.permutation(generated.shape[0])[:number]],
        "negative binomial": negative_binomial(train, number, rng),
    }
    sections = [
        Section(
            "What it says",
            verdicts=verdicts(result),
            paragraphs=(
                f"{result.cells:,} generated cells were compared with as many real cells that were held out. The floor "
                "is the same comparison between two halves of the real cells: no model can be expected below it. A "
                "model that is no nearer to real cells than independent negative binomials has learnt nothing of how "
                "genes hang together.",
            ),
        ),
        Section(
            "All metrics",
            tables=[
                ReportTable(
                    ("metric", "ideal", *ROWS.values()),
                    table_rows(result),
                    caption=CAPTION,
                )
            ],
        ),
    ]
    if by:
        rows = [[level, f"{of_level.cells:,}", *level_texts(of_level)] for level, of_level in by.items()]
        tables = [ReportTable(("value", "cells", *QUICK), rows, caption="generated (floor)")]
        sections.append(Section("By condition", tables=tables))
    sections.append(Section("Pictures", images=[_components(sets, train), _genes(sets), _depths(sets)]))
    sections.append(settings_section(settings))
    subtitle = f"{settings[GENERATED]} beside {settings['real']}"
    return Report("Generated cells beside real ones", subtitle, sections)


def _components(sets: Mapping[str, sp.csr_matrix], train: sp.csr_matrix) -> ReportImage:
    space = ExpressionSpace.fit(train, num_components=4)
    figure = new_figure(10.0, 4.4)
    panels = figure.subplots(1, 2)
    for axes, (a, b) in zip(panels, ((0, 1), (2, 3)), strict=True):
        for name in ("real", "generated"):
            points = space.project(sets[name])
            if points.shape[1] > b:
                axes.scatter(*points[:, [a, b]].T, s=7, alpha=0.5, linewidths=0, color=COLOURS[name], label=name)
        axes.set(xlabel=f"component {a + 1}", ylabel=f"component {b + 1}")
    panels[0].legend(frameon=False, markerscale=2.5)
    return ReportImage.of(
        figure,
        alt="Two scatter plots of real and generated cells over principal components 1 to 4.",
        caption="Principal components of log-normalised training cells; neither set had a say in them.",
    )


def _genes(sets: Mapping[str, sp.csr_matrix]) -> ReportImage:
    moments = {name: gene_moments(counts) for name, counts in sets.items()}
    figure = new_figure(10.0, 3.7)
    titles = {"mean": "log1p of mean count", "variance": "log1p of variance", "zero_rate": "share of zeros"}
    for axes, (moment, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        true = moments["real"][moment]
        for name in ("negative binomial", "generated"):
            axes.scatter(true, moments[name][moment], s=6, alpha=0.45, linewidths=0, color=COLOURS[name], label=name)
        ends = [float(true.min()), float(true.max())]
        axes.plot(ends, ends, color="0.3", linewidth=1)
        axes.set(title=title, xlabel="real", ylabel="made")
        if moment == "mean":
            axes.legend(frameon=False, markerscale=2.5)
    return ReportImage.of(
        figure,
        alt="Three scatter plots of genes: mean, variance and share of zeros, real against made.",
        caption="A point is a gene; on the line it is as in real cells. Negative binomials have its mean by design.",
    )


def _depths(sets: Mapping[str, sp.csr_matrix]) -> ReportImage:
    figure = new_figure(10.0, 3.2)
    panels = figure.subplots(1, 2)
    for name, counts in sets.items():
        depth = np.asarray(counts.sum(axis=1)).ravel()
        for axes, values in zip(panels, (np.log10(depth + 1), counts.getnnz(axis=1)), strict=True):
            axes.hist(values, bins=40, density=True, histtype="step", linewidth=1.6, color=COLOURS[name], label=name)
    panels[0].set(xlabel="log10 of counts a cell", ylabel="density")
    panels[1].set(xlabel="genes seen in a cell")
    panels[0].legend(frameon=False)
    return ReportImage.of(
        figure,
        alt="Histograms of counts a cell and of genes seen in a cell, real, generated and negative binomial.",
        caption="Depth and number of genes seen, over the genes that are compared.",
    )
