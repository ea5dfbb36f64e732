"""What is shown of a run: one line for each piece of news where the output is piped, a bar on a terminal."""

import io

import pytest
from rich.console import Console

import mdsc.progress
from mdsc.progress import CellProgress
from mdsc.training import progress
from mdsc.training.progress import RunProgress


def shown(*, is_terminal: bool, show: bool = True) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120, quiet=not show)
    with RunProgress(100, show=show, console=console) as run:
        run.validated("validation_nll", 1.25)
        run.done(0)
        for step in (10, 20):
            run.measured({"loss": 1.5, "cells_per_second": 1234.5, "model_flops_per_second": 2.5e14, "mfu": 0.4567})
            run.done(step)
        run.validated("validation_nll", 1.0)
        run.done(100)
    return console.file.getvalue()


def test_lines_where_it_is_piped(monkeypatch):
    clock = iter([0.0] + [100.0 + 5 * tick for tick in range(20)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = shown(is_terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 0/100", "step 20/100", "step 100/100"]
    assert "loss 1.5000  validation nll 1.2500  1,234 cells/s  250 TFLOP/s  MFU 45.7%" in lines[1]
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


def shown_cells(*, is_terminal: bool, lines: bool = True, show: bool = True) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    with CellProgress("preparing", 4000, show=show, lines=lines, console=console) as cells:
        cells.say("going on")
        for number in (1000, 1500, 2000, 4000):
            cells.done(number)
    return console.file.getvalue()


def test_speed_and_time_left_are_of_this_call(monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 10.0, 15.0])
    monkeypatch.setattr(mdsc.progress.time, "monotonic", lambda: next(clock))
    # 1,000 cells were done before; of the others 100 are done a second, and a line is due after ten.
    assert shown_cells(is_terminal=False).splitlines() == [
        "going on",
        "preparing 2,000/4,000 cells  100 cells/s  0:00:20 left",
    ]


def test_cells_are_shown_where_they_should_be():
    assert "4000/4000" in shown_cells(is_terminal=True, lines=False)
    assert shown_cells(is_terminal=False, lines=False) == ""
    assert shown_cells(is_terminal=False, show=False) == shown_cells(is_terminal=True, show=False) == ""
