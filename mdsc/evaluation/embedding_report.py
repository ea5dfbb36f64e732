"""The HTML report of an embedding: the table, the verdict, and both spaces in two dimensions."""

from collections.abc import Mapping, Sequence

import numpy as np

from mdsc.evaluation.embedding_cells import EmbeddedCells
from mdsc.evaluation.embedding_scores import EmbeddingScores, pca_of
from mdsc.evaluation.embedding_table import CAPTION, columns_of, table_rows
from mdsc.evaluation.report import Report, ReportImage, ReportTable, Section, Verdict, new_figure, settings_section

MOST_POINTS = 4000
MOST_NAMED = 20


def embedding_report(
    cells: EmbeddedCells,
    scores: Mapping[str, EmbeddingScores],
    key: str,
    verdicts: Sequence[Verdict],
    settings: Mapping,
) -> Report:
    how = "in five folds" if cells.is_train is None else "from the training cells of the split"
    said = (
        f"{len(cells.labels):,} cells with {len(cells.label_names)} labels. A cell gets the label that most of its "
        f"{settings['num_neighbours']} nearest training cells have, {how}; the labels had no part in training. PCA was "
        "fitted on the cells that vote."
    )
    sections = [
        Section(
            "What it says",
            verdicts=verdicts,
            paragraphs=[said],
            tables=[ReportTable(columns_of(scores), table_rows(scores), caption=CAPTION, ours=[key])],
        ),
        Section("Pictures", images=[_map(cells, key)]),
        settings_section(settings),
    ]
    return Report(f"Embedding {key} beside PCA", str(settings["input"]), sections)


def _map(cells: EmbeddedCells, key: str) -> ReportImage:
    """Two principal components of each space: distances that a picture of more would bend stay what they are."""
    every = np.arange(len(cells.labels))
    rows = np.random.default_rng(0).permutation(len(every))[:MOST_POINTS]
    spaces = {key: cells.points, "PCA of the counts": pca_of(cells.counts)(every)}
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(cells.label_names) <= 10 else "tab20"]
    figure = new_figure(10.0, 5.2)
    panels = figure.subplots(1, 2)
    frequent = np.argsort(-np.bincount(cells.labels), kind="stable")[:MOST_NAMED]
    for axes, (name, points) in zip(panels, spaces.items(), strict=True):
        centred = points - points.mean(axis=0)
        left, values, _ = np.linalg.svd(centred, full_matrices=False)
        flat = np.pad(left * values, ((0, 0), (0, 1)))[:, :2]
        other = rows[~np.isin(cells.labels[rows], frequent)]
        axes.scatter(*flat[other].T, s=6, color="0.8", linewidths=0, label="other" if len(other) else None)
        for place, label in enumerate(frequent):
            some = rows[cells.labels[rows] == label]
            style = {"color": [colours(place)], "label": cells.label_names[label], "alpha": 0.7}
            axes.scatter(*flat[some].T, s=6, linewidths=0, **style)
        axes.set(title=name, xlabel="component 1", ylabel="component 2", xticks=[], yticks=[])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, markerscale=2.5, fontsize=8)
    return ReportImage.of(
        figure,
        alt=f"Two scatter plots of cells by label: {key}, and principal components of the counts.",
        caption="First two principal components of either space, a colour for each label.",
    )
