"""Where the real cells lie that some tests read: `shared/data` beside the repository. It is no part of the project."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_file(name: str) -> Path:
    """The file, or a skipped test."""
    for parent in (ROOT.parent, ROOT.parent.parent):
        path = parent / "shared" / "data" / name
        if path.exists():
            return path
    pytest.skip(f"shared/data/{name} is not beside the repository")
