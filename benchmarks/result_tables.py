"""Tables of results, for the terminal and for Markdown, and the lines that say where the numbers are from."""

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from mdsc.atomic import replacing


@dataclass(frozen=True)
class ResultTable:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def show(self) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console()
        if not console.is_terminal:
            console.width = 160  # a file has no width, and rich would fold the table to 80 columns
        table = Table(
            title=self.title, caption=self.note, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD
        )
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        note = f"\n{self.note}\n" if self.note else ""
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n{note}"


def mean_and_sd(values: Sequence[float | None], *, signed: bool = False) -> str:
    """`0.2971 ± 0.0012`: mean and standard deviation (n - 1) over seeds; no ± for one seed."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):{'+' if signed else ''}.4f}"
    return f"{mean} ± {statistics.stdev(known):.4f}" if len(known) > 1 else mean


def write_markdown(path: Path, title: str, introduction: str, tables: Sequence[ResultTable]) -> None:
    parts = [f"# {title}\n", f"{introduction}\n", f"{provenance()}\n", *(table.markdown() for table in tables)]
    with replacing(path) as beside:
        beside.write_text("\n".join(parts), encoding="utf-8")


def provenance() -> str:
    """Date, machine, versions and the command that was typed."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    return (
        f"{date.today().isoformat()}; {cores()} CPU cores ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}, {versions}.\n\n"
        f"    {shlex.join(['python', *sys.argv])}"
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
