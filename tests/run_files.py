"""What two runs must have alike, down to the bit, if one of them was stopped and resumed."""

import json
from pathlib import Path

from safetensors import safe_open

from mdsc.training.state_files import TENSORS, saved_steps, state_folder
from mdsc.training.step_averages import CLOCKED
from mdsc.training.tracking import read_metrics


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def metrics(run: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in CLOCKED} for line in read_metrics(run)]


def differences(one: Path, other: Path) -> list[str]:
    """Names of the parts of two finished runs that are not the same to the bit."""
    found = [] if metrics(one) == metrics(other) else ["metrics.jsonl"]
    steps = saved_steps(one)
    if not steps or steps[-1] != saved_steps(other)[-1]:
        return [*found, "steps"]
    one_state, other_state = state_folder(one, steps[-1]), state_folder(other, steps[-1])
    pairs = [
        (folder / name, beside / name)
        for folder, beside, names in (
            (one, other, ["model.safetensors"]),
            (one_state, other_state, ["model.safetensors", TENSORS]),
        )
        for name in names
    ]
    found += [str(path.relative_to(one)) for path, beside in pairs if tensors(path) != tensors(beside)]
    for name in ("config.json", "tokenizer.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    facts = [json.loads((state / "state.json").read_text()) for state in (one_state, other_state)]
    for name in ("step", "data", "tensors", "ema_updates", "guard", "validation", "quarantined"):
        if facts[0][name] != facts[1][name]:
            found.append(f"state.json: {name}")
    return found
