"""Every option of a training run, with its default, its unit and what it does. YAML and flags: `yaml_flags`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path`; what is written there takes the place of `path` when the block ends well.

    Works for a file and for a folder (the block makes the folder itself). After an exception nothing is left behind and
    what stood at `path` before is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because writers such as anndata choose the format by it.
    beside = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    _remove(beside)
    try:
        yield beside
        if target.is_dir() and beside.is_dir():
            # A folder cannot be renamed onto a folder that is not empty: step aside first.
            aside = target.with_name(f".{target.name}.{os.getpid()}.old")
            os.replace(target, aside)
            os.replace(beside, target)
            shutil.rmtree(aside)
        else:
            os.replace(beside, target)
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
