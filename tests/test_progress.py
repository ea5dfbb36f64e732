"""What is shown of a run: one line for each piece of news where the output is piped, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from mdsc.training import progress
from mdsc.training.progress import RunProgress


def shown(*, is_terminal: bool, show: bool = True) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120, quiet=not show)
    with RunProgress(100, show=show, console=console) as run:
        run.validated({"validation_nll": 1.25})
        run.done(0)
        for step in (10, 20):
            run.measured({"loss": 1.5, "cells_per_second": 1234.5})
            run.done(step)
        run.validated({"validation_nll": 1.0})
        run.done(100)
    return console.file.getvalue()


def test_lines_where_it_is_piped(monkeypatch):
    clock = iter([0.0] + [100.0 + 5 * tick for tick in range(20)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = shown(is_terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 0/100", "step 20/100", "step 100/100"]
    assert "loss 1.5000  validation nll 1.2500  1,234 cells/s" in lines[1]
    assert "left" in lines[1]
    assert "validation nll 1.0000" in lines[2]
    assert "left" not in lines[2]


def test_a_bar_on_a_terminal():
    text = shown(is_terminal=True)
    assert "100/100" in text
    assert "validation nll 1.0000" in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_other_processes_are_silent(is_terminal: bool):
    assert shown(is_terminal=is_terminal, show=False) == ""
