"""`tokenizer.json`: the tokenizer of a checkpoint, with the values that were fitted on the training cells."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from mdsc.data.tokenizers import CLASSES, Tokenizer
from mdsc.errors import UserError

FILE_NAME = "tokenizer.json"


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    text = json.dumps({"name": tokenizer.name} | asdict(tokenizer), indent=1)
    (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path} is missing: this is no whole checkpoint; copy it again or train again")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind, edges, values = CLASSES[stored["name"]], tuple(stored["edges"]), tuple(stored["token_values"])
        if not all(type(edge) is int and edge < 2**31 for edge in edges) or not _rise_from_0(edges):
            raise ValueError("its edges are not whole numbers that rise from 0")
        if len(values) != len(edges) or not _rise_from_0(values):
            raise ValueError("its token_values are not as many numbers that rise from 0")
        return kind(edges, values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a tokenizer of mdsc ({error}); copy the checkpoint again") from error


def _rise_from_0(numbers: Sequence[float | int]) -> bool:
    return len(numbers) > 0 and numbers[0] == 0 and all(low < high < np.inf for low, high in pairwise(numbers))
