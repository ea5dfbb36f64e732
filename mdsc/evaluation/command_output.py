"""What the commands of `mdsc evaluate` share: how they speak, how they write scores, and what made these."""

import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mdsc import __version__
from mdsc.atomic import replacing

if TYPE_CHECKING:
    from rich.console import Console

WIDER_THAN_ANY_TABLE = 1000
"""Characters. A table takes what its cells need, and its caption is folded to that."""


def plain_console() -> "Console":
    """Prints text as it is. A pipe or a file has no width, and rich would fold tables to 80 columns there."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDER_THAN_ANY_TABLE
    return console


def write_scores(scores: dict, path: Path | None, say: Callable[[str], None]) -> None:
    """As JSON, if a file was asked for. None stands for what is not defined: JSON has no NaN."""
    if path is None:
        return
    with replacing(path) as beside:
        beside.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    say(f"wrote {path}")


def versions(*packages: str) -> dict[str, str]:
    """Of Python, mdsc and these packages."""
    return {"python": platform.python_version(), "mdsc": __version__, **{name: version(name) for name in packages}}
