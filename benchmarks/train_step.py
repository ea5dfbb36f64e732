"""A training step of each size, beside a plain DiT of the same width, depth and genes (the MDLM paper's, restated).

    python benchmarks/train_step.py --markdown train_step.md --json train_step.json
    python benchmarks/train_step.py --device cuda --sizes small base large xl --attentions sdpa flash_attention_2

Forward, loss, backward, clipping and AdamW, on simulated cells that are there already. On a CPU the sizes are scaled
down, the variants take turns, and CPU time is measured; on CUDA the sizes are those of configs/, one variant after the
other. MFU: 6 N floating-point operations a gene over the peak of a matrix product measured in the same run, where N is
the trunk without adaLN (mdsc/model/trunk_size.py); what attention does between genes is stated apart.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from result_tables import ResultTable, write_markdown
from train_step_measure import measure_in_turns, measure_one, operators
from train_step_variants import REFERENCE, STEP, TRUNK, WHAT, Shape

from mdsc.atomic import replacing
from mdsc.cli import exit_with
from mdsc.config.schema import ModelConfig, TrainConfig
from mdsc.config.shipped import shipped_config
from mdsc.config.yaml_flags import parse
from mdsc.errors import UserError
from mdsc.model.attention import BACKENDS, missing, require, unfit
from mdsc.model.trunk_size import attention_flops, matrix_flops
from mdsc.training.peak_flops import peak_flops

# Width, layers and heads on a CPU: 64 features a head and an MLP of four widths, as in the full sizes.
SCALED = {"tiny": (64, 1, 1), "small": (128, 2, 2), "base": (256, 3, 4), "large": (384, 4, 6), "xl": (512, 4, 8)}
CPU_BATCH = {"genes": 256, "cells": 8, "vocabulary": 2000}
CUDA_BATCH = {"genes": 1024, "vocabulary": 62_710}
CUDA_CELLS = {"tiny": 64, "small": 64, "base": 32, "large": 16, "xl": 8}


@dataclass(frozen=True, kw_only=True)
class TrainStepBenchmarkConfig:
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    sizes: tuple[Literal["tiny", "small", "base", "large", "xl"], ...] = ("base",)
    """Configs; on a CPU scaled down."""
    cells: tuple[int, ...] = ()
    """Cells of a batch; several make a sweep. Default: 8 on a CPU, 64 to 8 by size on CUDA."""
    genes: int | None = None
    """Genes of a cell. Default: 256 on a CPU, 1,024 on CUDA."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    """bf16 means autocast. Default: both on a CPU, bf16 on CUDA."""
    modes: tuple[Literal["eager", "compiled", "blocks", "recomputed"], ...] = ("eager", "compiled")
    """As it is; by torch.compile, as a whole or each block by itself (--train.compile); with our blocks computed anew
    in the backward pass (--train.gradient-checkpointing)."""
    attentions: tuple[str, ...] = ("sdpa",)
    """Names of --model.attention for our model; the reference has torch's own."""
    variants: tuple[str, ...] = field(default_factory=lambda: tuple(WHAT))
    """What to time; the reference is always timed."""
    repeats: int = 7
    """Times that each is measured, after two steps to warm up."""
    profile: bool = True
    """Also list the operators that take most of an eager step."""
    json: Path | None = None
    """File for all measurements."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    config = tyro.cli(TrainStepBenchmarkConfig, args=argv, description=__doc__)
    result = run(config)
    tables = [*speed_tables(result), *profile_tables(result)]
    for table in tables:
        table.show()
    if config.markdown is not None:
        write_markdown(config.markdown, "A training step", introduction(result), tables)


def run(config: TrainStepBenchmarkConfig) -> dict:
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA GPU here.")
    torch.set_float32_matmul_precision("highest")
    unknown = [name for name in config.variants if name not in WHAT]
    if unknown:
        raise UserError(f"--variants: there is no {unknown[0]!r}; there are: {', '.join(WHAT)}.")
    precisions = config.precisions or (("bf16",) if device.type == "cuda" else ("fp32", "bf16"))
    for name in config.attentions:
        _check_attention(name, device, is_half="fp32" not in precisions)
    names = (REFERENCE, *(name for name in config.variants if name != REFERENCE))
    peaks = {precision: peak_flops(device, bf16=precision == "bf16") for precision in precisions}
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    result = {"device": device_name, "peak_flops": peaks, "runs": [], "profiles": []}
    for size in config.sizes:
        for cells in config.cells or (CUDA_CELLS[size] if device.type == "cuda" else CPU_BATCH["cells"],):
            shape = _shape(size, device, cells, config.genes)
            for precision in precisions:
                for mode in config.modes:
                    for attention in config.attentions:
                        options = {"attention": attention, "bf16": precision == "bf16", "mode": mode}
                        setting = {"size": size, "precision": precision, "mode": mode, "attention": attention}
                        print(f"{size}, {cells} cells, {precision}, {mode}, {attention} ...", flush=True)
                        measured = (
                            {name: measure_one(name, shape, device, config.repeats, **options) for name in names}
                            if device.type == "cuda"
                            else measure_in_turns(names, shape, device, config.repeats, **options)
                        )
                        setting["shape"] = asdict(shape)
                        result["runs"] += [setting | {"name": name} | found for name, found in measured.items()]
                        _save(result, config.json)
            if config.profile:
                of = [name for name in (REFERENCE, TRUNK, STEP) if name in names]
                bf16 = precisions[-1] == "bf16"
                found = {name: operators(name, shape, device, bf16=bf16) for name in of}
                profile = {"size": size, "cells": cells, "precision": precisions[-1], "operators": found}
                result["profiles"].append(profile)
                _save(result, config.json)
    return result


def _save(result: dict, path: Path | None) -> None:
    """After each setting: a long sweep that is cut short has not been for nothing."""
    if path is not None:
        with replacing(path) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _check_attention(name: str, device: torch.device, *, is_half: bool) -> None:
    if name not in BACKENDS:
        raise UserError(f"--attentions: there is no {name!r}; there are: {', '.join(BACKENDS)}.")
    reason = unfit(name, device.type, is_half=is_half, has_pads=False, needs_grad=True)
    require(name, missing(name) or reason, flag="--attentions")


def _shape(size: str, device: torch.device, cells: int, genes: int | None) -> Shape:
    if device.type == "cuda":
        model: ModelConfig = parse(TrainConfig, ["--config", str(shipped_config(size))]).model
        width, layers, heads, batch = model.hidden_size, model.num_layers, model.num_heads, CUDA_BATCH
        state = model.state_size
    else:
        (width, layers, heads), batch, state = SCALED[size], CPU_BATCH, 64
    genes = genes or batch["genes"]
    return Shape(width, layers, heads, state, genes, cells, max(batch["vocabulary"], genes))


def speed_tables(result: dict) -> list[ResultTable]:
    """One a size and number of cells."""
    tables = []
    keys = list(dict.fromkeys((run["size"], run["shape"]["cells"]) for run in result["runs"]))
    for size, cells in keys:
        runs = [run for run in result["runs"] if (run["size"], run["shape"]["cells"]) == (size, cells)]
        shape = runs[0]["shape"]
        trunk = next((run["trunk"] for run in runs if "trunk" in run), 0)
        first = next(run for run in runs if run["name"] == REFERENCE)
        rows = [_row(run, runs, first, result["peak_flops"][run["precision"]]) for run in runs]
        title = (
            f"{size}: width {shape['width']}, {shape['layers']} layers, {shape['genes']} genes, {cells} cells; "
            f"trunk {trunk / 1e6:.2f}M"
        )
        columns = (
            "", "setting", "ms a step", "cells/s", "genes/s", "MFU", "of attention", "speed over reference",
            f"over {first['precision']} {first['mode']}", "memory (MiB)", "first step (s)",
        )  # fmt: skip
        tables.append(ResultTable(title, columns, rows, _note(result)))
    return tables


def _row(run: dict, runs: list[dict], first: dict, peak: float) -> tuple[str, ...]:
    setting = " ".join((run["precision"], run["mode"], *([] if run["attention"] == "sdpa" else [run["attention"]])))
    if "failure" in run:
        return (run["name"], setting, run["failure"], *["-"] * 8)
    same = ("precision", "mode", "attention")
    reference = next(r for r in runs if r["name"] == REFERENCE and all(r[key] == run[key] for key in same))
    seconds, shape = statistics.median(run["seconds"]), run["shape"]
    genes = shape["cells"] * shape["genes"]
    between = attention_flops(shape["layers"], shape["width"], shape["genes"]) * genes / seconds / peak
    return (
        run["name"],
        setting,
        f"{1000 * seconds:,.1f}",
        f"{shape['cells'] / seconds:,.1f}",
        f"{genes / seconds:,.0f}",
        f"{matrix_flops(run['trunk']) * genes / seconds / peak:.1%}",
        f"{between:.1%}",
        _speed(reference, run),
        _speed(first, run),
        f"{run['memory_bytes'] / 2**20:,.0f}",
        f"{run['first_seconds']:,.1f}",
    )


def _speed(reference: dict, run: dict) -> str:
    """Median over repeats of the ratio of what was measured in the same turn."""
    if "failure" in reference:
        return "-"
    ratios = [theirs / ours for theirs, ours in zip(reference["seconds"], run["seconds"], strict=True)]
    return f"{statistics.median(ratios):.2f}"


def _note(result: dict) -> str:
    peaks = ", ".join(f"{precision} {peak / 1e12:,.3g}" for precision, peak in result["peak_flops"].items())
    memory = "saved for the way back" if result["device"] == "CPU" else "highest allocated"
    return f"Peak of a matrix product in this run (TFLOP/s): {peaks}. Memory: {memory}. MFU is 6 N, without attention."


def profile_tables(result: dict) -> list[ResultTable]:
    """Own time of the operators that take most of any variant, in ms of an eager step."""
    tables = []
    for profile in result["profiles"]:
        times = {name: found for name, found in profile["operators"].items() if found}
        totals = {name: sum(found.values()) for name, found in times.items()}
        shares = {op: max(times[n].get(op, 0) / totals[n] for n in times) for n in times for op in times[n]}
        top = sorted(shares, key=shares.get, reverse=True)[:14]
        rows = [(op, *(f"{1000 * times[name].get(op, 0):,.1f}" for name in times)) for op in top]
        rows.append(("all", *(f"{1000 * total:,.1f}" for total in totals.values())))
        title = f"Where the time goes: {profile['size']}, {profile['cells']} cells, {profile['precision']}, eager"
        tables.append(ResultTable(title, ("operator", *(f"{name} (ms)" for name in times)), rows))
    return tables


def introduction(result: dict) -> str:
    what = "\n".join(f"- {name}: {text}." for name, text in WHAT.items())
    return f"Measured on: {result['device']}. What is timed:\n\n{what}"


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
