"""Tables of what benchmarks/gpu.py has measured, beside the goals; what was not measured is said to be so."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from result_tables import ResultTable

from mdsc.atomic import replacing
from mdsc.model.trunk_size import attention_flops, matrix_flops

GOALS = {"base": 0.45, "large": 0.50, "xl": 0.50}
"""Least MFU of a compiled step, with what attention does between genes, over the peak measured in the same run."""
SPEED_GOAL = 1.5
"""Least speed of our whole step over the reference DiT's."""
FLAT = 0.02
"""Growth of memory, of the whole, that is none."""
NOTHING = "not measured"


def write_tables(path: Path, result: dict) -> None:
    """Tables behind `## Measured` in a file; what stands before that heading is left as it is."""
    head = path.read_text(encoding="utf-8").split("## Measured")[0] if path.is_file() else "# On a GPU\n\n"
    with replacing(path) as beside:
        beside.write_text(head + "## Measured\n\n" + "\n".join(text(result)), encoding="utf-8")


def text(result: dict) -> Iterator[str]:
    stages = result["stages"]
    peak = stages.get("peak", {})
    if result["dry_run"]:
        yield "**A dry run on a CPU with tiny shapes: these figures say that the script works, and nothing else.**\n"
    if "device" in peak:
        peaks = ", ".join(f"{name} {peak[name] / 1e12:,.4g}" for name in ("bf16", "fp32") if name in peak)
        yield f"{peak['device']}; torch {peak['torch']}; matrix product {peaks} TFLOP/s; {peak.get('time', '')}.\n"
    for table in (goals(stages), *tables(stages)):
        yield table.markdown()


def goals(stages: dict) -> ResultTable:
    """Each goal with what was measured for it."""
    rows = []
    told = stages.get("sizes", {})
    runs, peak = [run for run in told.get("runs", ()) if "seconds" in run], told.get("peak", 0.0)
    for size, goal in GOALS.items():
        found = [_mfu(run, peak) for run in runs if _is(run, "mdsc", size, "compiled")]
        rows.append((f"MFU of {size}", f">= {goal:.0%}", *_judged(max(found, default=None), goal, "{:.1%}")))
    for size in GOALS:
        for mode, told in (("compiled", "both compiled"), ("eager", "which is eager")):
            ours = [_seconds(run) for run in runs if _is(run, "mdsc", size, "compiled")]
            theirs = [_seconds(run) for run in runs if _is(run, "reference", size, mode)]
            speed = theirs[0] / ours[0] if ours and theirs else None
            judged = _judged(speed, SPEED_GOAL, "{:.2f}")
            rows.append((f"{size} over the reference, {told}", f">= {SPEED_GOAL}", *judged))
    rows += [*_attention_goal(stages), *_stability_goals(stages)]
    return ResultTable("Goals", ("", "goal", "measured", ""), rows)


def _is(run: dict, who: str, size: str, mode: str) -> bool:
    return run["name"].startswith(who) and (run["size"], run["mode"]) == (size, mode)


def _attention_goal(stages: dict) -> Iterator[tuple[str, ...]]:
    trials = stages.get("attention", {}).get("trials", {})
    ran = {name: trial for name, trial in trials.items() if trial["error"] is not None}
    wrong = [name for name, trial in ran.items() if trial["verdict"].startswith("wrong")]
    told = (f"{len(ran)} ran, {len(wrong)} wrong", "no" if wrong else "yes") if ran else (NOTHING, "-")
    yield ("attention kernels agree", "all that run", *told)


def _stability_goals(stages: dict) -> Iterator[tuple[str, ...]]:
    told = stages.get("stability", {})
    if "steps" not in told:
        yield ("steady training", "20 minutes", NOTHING, "-")
        return
    minutes = told["training_seconds"] / 60
    yield ("steady training", "20 minutes", f"{minutes:.1f} minutes, {told['steps']:,} steps", _yes(minutes >= 20))
    bad = told["skipped_steps"] + told["lines_that_are_not_finite"]
    yield ("steps that were not finite", "0", str(bad), _yes(bad == 0))
    losses = (told["loss_of_first_quarter"], told["loss_of_last_quarter"])
    yield ("loss, first and last quarter", "falls", f"{losses[0]:.4f}, {losses[1]:.4f}", _yes(losses[1] < losses[0]))
    for name in ("gpu_mib", "resident_mib"):
        values = [point[name] for point in told["watched"] if name in point]
        late = values[len(values) // 3 :]
        if len(late) >= 4:
            half = len(late) // 2
            before, after = statistics.median(late[:half]), statistics.median(late[half:])
            flat = _yes(after <= before * (1 + FLAT))
            yield (f"memory, {name}, later two thirds", "flat", f"{before:,.0f}, then {after:,.0f}", flat)


def tables(stages: dict) -> Iterator[ResultTable]:
    """Of each stage that has measured anything."""
    for name, title in (("sizes", "Steps of each size"), ("sweep", "Cells of a batch"), ("backends", "Attention")):
        told = stages.get(name, {})
        if told.get("runs"):
            rows = [_step_row(run, told["peak"]) for run in told["runs"]]
            columns = ("", "cells", "setting", "ms a step", "cells/s", "MFU, 6 N", "with attention", "memory (MiB)")
            yield ResultTable(title, columns, rows, "; ".join(_notes(told)))
    if trials := stages.get("attention", {}).get("trials"):
        base = (trials.get("sdpa") or {}).get("seconds")
        rows = [
            (name, trial["verdict"], _number(trial["error"], "{:.0e}"), _number(trial["gradient_error"], "{:.0e}"),
             _number(trial["seconds"] and base and trial["seconds"] / base, "{:.2f}"))
            for name, trial in trials.items()
        ]  # fmt: skip
        note = f"bf16 against eager float32, over the largest value; right is below {stages['attention']['tolerance']}."
        yield ResultTable("Attention alone", ("", "verdict", "error", "of gradient", "time over sdpa"), rows, note)
    if runs := stages.get("loader", {}).get("runs"):
        rows = [
            (run["size"], str(run["workers"]), *(f"{run[name]:,.1f}" for name in ("resident", "fed", "loader_alone")),
             f"{run['fed'] / run['resident']:.1%}")
            for run in runs
        ]  # fmt: skip
        columns = ("", "workers", "cells there already (cells/s)", "with the loader", "loader alone", "kept")
        yield ResultTable("The loader feeding a training run", columns, rows)
    rest = [(name, _plainly(stages[name])) for name in ("resume", "tests", "stability") if name in stages]
    if failures := [(name, told["failure"]) for name, told in stages.items() if "failure" in told]:
        rest += [(f"{name}: what went wrong", failure) for name, failure in failures]
    if rest:
        yield ResultTable("The rest", ("stage", "what came of it"), rest)


def _step_row(run: dict, peak: float) -> tuple[str, ...]:
    name, setting = f"{run['size']}: {run['name']}", f"{run['precision']} {run['mode']} {run['attention']}"
    cells = run["shape"]["cells"]
    if "failure" in run:
        return (name, str(cells), setting, run["failure"], *["-"] * 4)
    seconds = _seconds(run)
    alone = _mfu(run, peak, with_attention=False)
    return (
        name,
        str(cells),
        setting,
        f"{1000 * seconds:,.1f}",
        f"{cells / seconds:,.1f}",
        f"{alone:.1%}",
        f"{_mfu(run, peak):.1%}",
        f"{run['memory_bytes'] / 2**20:,.0f}",
    )


def _notes(told: dict) -> Iterator[str]:
    yield f"Peak {told['peak'] / 1e12:,.4g} TFLOP/s in bf16, measured before"
    yield from told.get("failures", ())
    if "failure" in told:
        yield told["failure"]


def _seconds(run: dict) -> float:
    return statistics.median(run["seconds"])


def _mfu(run: dict, peak: float, *, with_attention: bool = True) -> float:
    shape = run["shape"]
    between = attention_flops(shape["layers"], shape["width"], shape["genes"]) if with_attention else 0
    flops = shape["cells"] * shape["genes"] * (matrix_flops(run["trunk"]) + between)
    return flops / _seconds(run) / peak


def _judged(value: float | None, goal: float, form: str) -> tuple[str, str]:
    return (NOTHING, "-") if value is None else (form.format(value), _yes(value >= goal))


def _yes(answer: bool) -> str:
    return "yes" if answer else "**no**"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _plainly(told: dict) -> str:
    left_out = {"time", "seconds", "watched", "failure", "files"}
    return ", ".join(f"{name} {value}" for name, value in told.items() if name not in left_out and value is not None)
