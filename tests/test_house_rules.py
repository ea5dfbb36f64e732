"""The rules of CONTRIBUTING.md that a program can hold: one idea a file, nothing that could run a stranger's code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 300
# A file is named for what it holds.
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
# Names that load objects by running what a file says.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "eval", "exec"}


def sources() -> Iterator[Path]:
    """All of the project's Python files but the tests, which make poisoned files on purpose."""
    yield from ROOT.glob("*.py")
    for folder in ("mdsc", "data_prep", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")


def offences(code: str) -> list[str]:
    """Where the code could unpickle or evaluate what it reads."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            names = [ast.unparse(node.func)]
            if any(keyword.arg == "allow_pickle" or keyword.arg == "trust_remote_code" for keyword in node.keywords):
                names.append("torch.load")
        else:
            continue
        found += [f"line {node.lineno}: {name}" for name in names if name in UNPICKLERS | CALLS]
    return found


def test_nothing_unpickles_or_evaluates_what_it_reads():
    assert len(list(sources())) > 50
    assert not {str(path): found for path in sources() if (found := offences(path.read_text()))}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import load",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "numpy.load('x', allow_pickle=True)",
        "read('x', allow_pickle=True)",
        "eval('1')",
    ],
)
def test_the_rule_finds_what_it_forbids(code: str):
    assert offences(code)


def test_files_are_short():
    long = {str(path): lines for path in sources() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


def test_files_are_named_for_what_they_hold():
    folders = [path for path in (ROOT / "mdsc").rglob("*") if path.is_dir()]
    named = [*sources(), *(ROOT / "tests").glob("*.py"), *folders]
    assert not [str(path) for path in named if path.stem in NO_NAMES]


def test_every_module_says_what_it_is_for():
    assert not [str(path) for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    tests = [path for path in (ROOT / "tests").glob("*.py") if path.name != Path(__file__).name]
    assert not [str(path) for path in [*sources(), *tests] if marks.search(path.read_text())]


def test_annotations_are_never_strings_where_shapes_are_checked():
    """jaxtyping cannot check what `from __future__ import annotations` turns into text."""
    both = ("from __future__ import annotations", "jaxtyping")
    assert not [str(path) for path in sources() if all(text in path.read_text() for text in both)]
