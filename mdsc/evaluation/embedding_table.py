"""The table of an embedding beside PCA, and a sentence on which keeps labels better."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mdsc.evaluation.embedding_scores import EmbeddingScores
from mdsc.evaluation.report import Verdict, number

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {
    "accuracy": "accuracy ↑",
    "macro_f1": "macro F1 ↑",
    "silhouette": "silh. ↑",
    "ari": "ARI ↑",
    "nmi": "NMI ↑",
    "batch_entropy": "mixing ↑",
    "batch_silhouette": "batch silh. ↓",
}
CAPTION = (
    "Labels that a cell gets from its neighbours among training cells. ±: standard error over cells; of ARI and NMI "
    "the deviation over k-means starts. silh.: silhouette; mixing: entropy of batches among neighbours, 1 as by "
    "chance. depth: log counts alone; permuted labels: what no knowledge gives"
)


def table_rows(scores: Mapping[str, EmbeddingScores]) -> list[list[str]]:
    return [[name, *_texts(found)] for name, found in scores.items()]


def columns_of(scores: Mapping[str, EmbeddingScores]) -> list[str]:
    first = next(iter(scores.values()))
    return ["embedding", *(heading for metric, heading in HEADINGS.items() if metric in first.metrics)]


def embedding_table(scores: Mapping[str, EmbeddingScores], key: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", padding=(0, 1))
    for place, heading in enumerate(columns_of(scores)):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in table_rows(scores):
        table.add_row(*row, style="bold cyan" if row[0] == key else "")
    return table


def verdict(key: str, baseline: str, gap: float, error: float) -> Verdict:
    """gap: accuracy of the embedding less that of the baseline."""
    points = f"{100 * abs(gap):.1f} ± {100 * error:.1f} points of kNN accuracy"
    if gap >= 0:
        return Verdict(f"{key} is level with {baseline} of the counts or better: +{points}.", "good")
    return Verdict(f"{baseline} of the counts is BETTER than {key} by {points}.", "bad")


def _texts(found: EmbeddingScores) -> list[str]:
    texts = []
    for metric in HEADINGS:
        if metric in found.metrics:
            error = found.standard_error.get(metric)
            texts.append(number(found.metrics[metric], 3) + ("" if error is None else f" ± {number(error, 3)}"))
    return texts
