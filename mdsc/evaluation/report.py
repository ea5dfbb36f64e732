"""A report as one HTML file that can be sent to a colleague: no network, no scripts, pictures inside, text escaped."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mdsc.atomic import replacing
from mdsc.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
NOT_DEFINED = "n/a"


@dataclass(frozen=True)
class Verdict:
    """A sentence that says how it went, and whether that is good for what was scored."""

    text: str
    kind: Literal["good", "bad", ""] = ""


@dataclass(frozen=True)
class ReportTable:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of each is the row's heading."""
    caption: str = ""
    ours: Sequence[str] = ()
    """Headings of the rows that stand out."""


@dataclass(frozen=True)
class ReportImage:
    data: str
    """PNG, in base64."""
    width: int
    """Pixels at which it is shown: half of what it has, for sharp screens and for paper."""
    alt: str
    """What it shows, for those who do not see it."""
    caption: str

    @classmethod
    def of(cls, figure: "Figure", *, alt: str, caption: str) -> "ReportImage":
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=1.5 * DPI)
        width = round(figure.get_figwidth() * DPI * 0.85)
        return cls(base64.b64encode(file.getvalue()).decode("ascii"), width, alt, caption)


@dataclass(frozen=True)
class Section:
    title: str
    verdicts: Sequence[Verdict] = ()
    paragraphs: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    images: Sequence[ReportImage] = ()
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    sections: Sequence[Section]

    def html(self) -> str:
        import jinja2  # torch brings it

        source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        return environment.from_string(source).render(report=self)

    def save(self, path: str | Path) -> None:
        with replacing(path) as beside:
            beside.write_text(self.html(), encoding="utf-8")


def check_report_path(path: Path | None, suffixes: Sequence[str]) -> None:
    if path is not None and path.suffix.lower() not in suffixes:
        raise UserError(f"--report: {path} does not end in {' or '.join(suffixes)}.")


def new_figure(width: float, height: float) -> "Figure":
    """Inches. The object interface leaves the user's own matplotlib backend alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def settings_section(settings: Mapping) -> Section:
    """All settings, flat; the last part of every report."""
    return Section("Settings and versions", facts=list(_flat(settings)))


def _flat(settings: Mapping, prefix: str = ""):
    for name, value in settings.items():
        heading = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{heading}: ")
        elif isinstance(value, list | tuple):
            yield heading, ", ".join(map(str, value))
        else:
            yield heading, "none" if value is None else str(value)


def number(value: float | None, digits: int = 4) -> str:
    """`0.1234`; n/a for None and NaN."""
    return NOT_DEFINED if value is None or value != value else f"{value:.{digits}f}"
