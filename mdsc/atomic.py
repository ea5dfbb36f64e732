"""Files and folders that are written beside and renamed, by one command at a time."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdsc.errors import UserError

# What this package writes beside `name.suffix` on the way to it: .name.123.partial.suffix, .name.parts, ...
BESIDE = re.compile(
    r"(?<![^/'\"\s])\.([^/]+?)\.(?:\d+\.(?:partial|old)|parts|lock|unfinished-[0-9a-f]+)(\.[^/.:'\"\s]+)?(?=[/'\"\s,:]|$)"
)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path`; what is written there takes the place of `path` when the block ends well.

    Works for a file and for a folder (the block makes the folder itself). After an exception nothing is left behind and
    what stood at `path` before is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Told here, because each library that writes has its own words for it.
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
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


@contextmanager
def alone(output: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder or file; a `UserError` where another command that runs now has it."""
    try:
        import fcntl  # no such thing on Windows, where there is no lock
    except ImportError:
        yield
        return
    target = Path(output).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it until now has removed it.
            is_there = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except BlockingIOError:
            is_there = False
        if not is_there:
            raise UserError(f"{output} is being written by another command: wait until it has ended")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def as_given(text: str) -> str:
    """A path or a message, in which what is written beside a file is called by the name of the file."""
    return BESIDE.sub(r"\1\2", text)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
