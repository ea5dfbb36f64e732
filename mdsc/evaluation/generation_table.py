"""The table of generated cells beside real ones and baselines, and plain sentences on what it says."""

import math
from typing import TYPE_CHECKING

from mdsc.evaluation.generation_baselines import BASELINES, ORACLE
from mdsc.evaluation.generation_scores import FLOOR, GENERATED, IDEAL, QUICK, GenerationResult
from mdsc.evaluation.report import NOT_DEFINED, Verdict, number

if TYPE_CHECKING:
    from rich.table import Table

ROWS = {
    GENERATED: "generated",
    FLOOR: "real half: floor",
    **{name: name.replace("_", " ") for name in BASELINES},
}
JUDGED = ("mmd2", "w2", "auc_boosting", "correlation_error")
"""One of each kind: those of the verdicts."""
CAPTION = (
    "Each row is a metric, each column a set of cells compared with the same real cells; mean ± standard deviation "
    "over random cuts. Ideal: what the right law has, but for the noise that the floor shows. The training cells are "
    "real ones: an oracle that copies."
)


def table_rows(result: GenerationResult) -> list[list[str]]:
    """Metric, ideal, then one cell for each of ROWS."""
    return [
        [metric, f"{IDEAL[metric]:g}", *(_text(result, row, metric) for row in ROWS)]
        for metric in result.values[GENERATED]
    ]


def generation_table(result: GenerationResult) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", padding=(0, 1))
    for place, heading in enumerate(("metric", "ideal", *ROWS.values())):
        table.add_column(
            heading,
            justify="right" if place else "left",
            style="bold cyan" if place == 2 else "",
            min_width=0 if place else max(map(len, result.values[GENERATED])),
        )
    for row in table_rows(result):
        table.add_row(*row)
    return table


def verdicts(result: GenerationResult) -> list[Verdict]:
    """For each judged metric: which baselines are as near to real cells; and whether training cells were copied."""
    said = []
    for metric in JUDGED:
        if metric not in result.values[GENERATED] or math.isnan(result.mean(GENERATED, metric)):
            continue
        ours, floor = result.distance(GENERATED, metric), result.distance(FLOOR, metric)
        nearer = [
            ROWS[name] for name in BASELINES if name != ORACLE and not result.distance(name, metric) > ours
        ]  # a baseline that is not defined is not beaten either
        text = f"{metric}: generated {_text(result, GENERATED, metric)}, floor {_text(result, FLOOR, metric)}; "
        if nearer:
            said.append(Verdict(f"{text}{' and '.join(nearer)} NOT beaten.", "bad"))
        else:
            noise = result.deviation(FLOOR, metric)
            at_floor = ours <= floor + 2 * noise
            said.append(Verdict(f"{text}every baseline is further off{', and it is at the floor' * at_floor}.", "good"))
    copied, nearer_share = result.mean(GENERATED, "copies"), result.mean(GENERATED, "nearer_to_training")
    if copied > 0 or nearer_share > 0.75:
        said.append(
            Verdict(
                f"A generated cell is nearer to a training cell than a real one is with chance {nearer_share:.2f} (as "
                f"real cells: 0.5), and {copied:.1%} ARE training cells. Is the model memorising, or are all alike?",
                "bad",
            )
        )
    return said


def level_texts(result: GenerationResult) -> list[str]:
    """`generated (floor)` of each metric of QUICK."""
    return [
        f"{number(result.mean(GENERATED, metric))} ({number(result.mean(FLOOR, metric))})"
        if metric in result.values[GENERATED]
        else NOT_DEFINED
        for metric in QUICK
    ]


def _text(result: GenerationResult, row: str, metric: str) -> str:
    mean, deviation = result.mean(row, metric), result.deviation(row, metric)
    if math.isnan(mean):
        return NOT_DEFINED
    return number(mean) if math.isnan(deviation) else f"{number(mean)} ± {number(deviation)}"
