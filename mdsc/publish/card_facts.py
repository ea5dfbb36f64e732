"""What a model card tells, read from a snapshot and from the run's folder; what is not known stays None."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mdsc.data.genes import GeneStatistics
from mdsc.data.shard_mixture import open_shards
from mdsc.errors import UserError
from mdsc.hub.download import WEIGHTS
from mdsc.publish.snapshot import Snapshot

SCORES = "scores.json"
METRICS = "metrics.jsonl"
STARTS = "run.json"


@dataclass(frozen=True)
class DataFacts:
    name: str
    digest: str
    """Of the manifest, SHA-256."""
    cells: int
    """Of split "train", the run's own validation cells included."""
    sources: tuple[str, ...]
    """Names of the files that the shards were made of."""


@dataclass(frozen=True)
class CardFacts:
    step: int | None
    config: dict[str, Any]
    """config.json"""
    tokenizer: str | None
    """None for a Gaussian head."""
    options: dict[str, Any]
    """training.yaml; empty where it is not there."""
    num_weights: int
    """Numbers in model.safetensors, fixed tables included."""
    data: DataFacts | None
    data_missing: str
    """Why `data` is None."""
    scores: dict[str, Any] | None
    """scores.json of `evaluate.py inpaint`, if it is of these very weights."""
    scores_missing: str
    """Why `scores` is None."""
    validation: dict[str, Any] | None
    """The newest validation scores that are no newer than the snapshot."""
    quarantined: int
    """Row groups of the data that the run has replaced."""
    start: dict[str, Any] | None
    """How the run was started, or gone on with, last: commit, versions, devices."""


def card_facts(snapshot: Snapshot, run: Path) -> CardFacts:
    folder = snapshot.folder
    options = folder / "training.yaml"
    options = yaml.safe_load(options.read_text(encoding="utf-8")) if options.is_file() else {}
    data, data_missing = _data(options, folder)
    scores, scores_missing = _scores(run / SCORES, folder / WEIGHTS)
    quarantined = folder / "quarantined.json"
    return CardFacts(
        step=snapshot.step,
        config=_json(folder / "config.json"),
        tokenizer=_json(tokenizer)["name"] if (tokenizer := folder / "tokenizer.json").is_file() else None,
        options=options,
        num_weights=_num_weights(folder / WEIGHTS),
        data=data,
        data_missing=data_missing,
        scores=scores,
        scores_missing=scores_missing,
        validation=_validation(run, snapshot.step),
        quarantined=len(_json(quarantined)) if quarantined.is_file() else 0,
        start=_start(run / STARTS),
    )


def last_saved_step(run: Path) -> int | None:
    """Steps done when a run's weights were saved, by its metrics and options; None where these do not tell."""
    try:
        train = yaml.safe_load((run / "training.yaml").read_text(encoding="utf-8"))["train"]
        done = max(line["step"] for line in _metrics(run))
        return done if done >= train["max_steps"] else done // train["save_every"] * train["save_every"] or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _num_weights(path: Path) -> int:
    """From the header alone: 8 bytes with its length, then JSON (the format of safetensors)."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")


def _data(options: dict[str, Any], folder: Path) -> tuple[DataFacts | None, str]:
    path = Path(options.get("data", {}).get("dir", ""))
    if not path.name:
        return None, "The options of the run were not kept, and with them the name of its data."
    try:
        shards = open_shards(path, check_sizes=False)
        same = _same_statistics(shards.statistics, GeneStatistics.load(folder))
    except UserError:
        return None, f"Shards `{path.name}`; they were not at hand when this card was written."
    if not same:
        return None, f"Shards `{path.name}`; what was of that name when this card was written were other ones."
    counted = Counter(str(source.get("file", "")) for source in shards.manifest.sources)
    sources = tuple(name for name in counted if name)
    return DataFacts(path.name, shards.digest, shards.num_cells("train"), sources), ""


def _same_statistics(one: GeneStatistics, other: GeneStatistics) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in GeneStatistics.COLUMNS)


def _scores(path: Path, weights: Path) -> tuple[dict[str, Any] | None, str]:
    if not path.is_file():
        return None, f"there is no {SCORES}"
    try:
        scores = _json(path)
        digest = scores["settings"].get("weights_sha256")
        if not isinstance(scores["model"], dict) or not isinstance(scores["baselines"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{SCORES} is not of `evaluate.py inpaint`"
    with weights.open("rb") as file:
        if digest != hashlib.file_digest(file, "sha256").hexdigest():
            return None, f"{SCORES} is of other weights"
    return scores, ""


def _start(path: Path) -> dict[str, Any] | None:
    try:
        start = _json(path)["starts"][-1]
        return start if isinstance(start["versions"], dict) and isinstance(start["devices"], list) else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = []
    for line in (run / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # the line that is being written
    return [line for line in lines if isinstance(line, dict) and "event" not in line]


def _validation(run: Path, step: int | None) -> dict[str, Any] | None:
    try:
        lines = [line for line in _metrics(run) if any(name.startswith("validation_") for name in line)]
    except OSError:
        return None
    known = [line for line in lines if step is None or line["step"] <= step]
    return known[-1] if known else None
