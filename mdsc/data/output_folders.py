"""May a folder be replaced? Only where all that is in it was made by the commands that make shards.

Shards and mixtures are written beside their folder and take its place as a whole, so whatever else it holds is lost.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mdsc.data.genes import FILE_NAME as GENES
from mdsc.data.manifest import FILE_NAME as MANIFEST
from mdsc.data.manifest import is_shard_folder
from mdsc.data.shard_mixture import FILE_NAME as MIXTURE
from mdsc.errors import UserError

TRUTH = "truth.safetensors"
"""Of simulated cells (`mdsc.prep.simulate`)."""
CACHE = "cache"
"""Row groups that training read from far away (--data.cache-dir)."""
NUM_SHOWN = 3


def check_output(folder: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """The folder, if shards may be written there: it is new, empty, or holds shards and nothing else.

    A `UserError` names files that would be lost, and the first of `inputs` that lies in the folder.
    """
    folder = Path(folder)
    _check_place(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not is_shard_folder(folder):
        raise UserError(f"{folder} holds other files, which would be lost: give a new folder for the shards")
    for path in inputs:
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} lies in --output-dir {folder}, which is replaced as a whole: give another folder")
    _refuse_strangers(folder, {MANIFEST, GENES, TRUTH, *_listed_files(folder)})
    return folder


def check_mixture_output(folder: Path) -> None:
    """The same for a mixture, whose folder holds no cells."""
    _check_place(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / MIXTURE).is_file():
        raise UserError(f"{folder} holds other files, which would be lost: give a new folder (--output-dir)")
    _refuse_strangers(folder, {MIXTURE, GENES})


def _check_place(folder: Path) -> None:
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            here = "give a folder for the shards" if place == folder else f"{folder} cannot be below it"
            raise UserError(f"{place} is a file; {here} (--output-dir)")


def _refuse_strangers(folder: Path, own: set[str]) -> None:
    strangers = sorted(name for name in _files(folder) if name not in own and name.partition("/")[0] != CACHE)
    if strangers:
        more = f" and {len(strangers) - NUM_SHOWN:,} more" if len(strangers) > NUM_SHOWN else ""
        raise UserError(
            f"{folder} would be replaced, and holds files that are no part of it: {', '.join(strangers[:NUM_SHOWN])}"
            f"{more}.\nMove them elsewhere, or give another --output-dir."
        )


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _listed_files(folder: Path) -> set[str]:
    """The shards that the manifest lists, be it of an older version; none where it refers to files elsewhere."""
    stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    try:
        return set() if stored.get("root") else {str(shard["file"]) for shard in stored["shards"]}
    except (KeyError, TypeError, AttributeError):
        return set()
