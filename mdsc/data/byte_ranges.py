"""Bytes of a file that is here, or that is elsewhere and is read by ranges (fsspec: hf://, s3://, ...)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdsc.data.range_cache import RangeCache

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class DamagedFile(Exception):
    """Bytes that are not what was prepared, or no parquet; the message says what is wrong, without naming the file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file under a URL. Its content must never change (on a hub: name the commit), or the cache would be wrong."""

    url: str
    size: int
    cache: RangeCache | None = None

    def __str__(self) -> str:
        return self.url

    def read(self, start: int, stop: int) -> bytes:
        """At most these bytes, by one request. `OSError` where it fails."""
        try:
            system, path = file_system(self.url)
            # Without cache_type the file system would read ahead some megabytes, and without size ask for it.
            with system.open(path, "rb", cache_type="none", size=self.size) as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError:
            raise
        except Exception as error:  # each file system has its own kinds
            raise OSError(f"{type(error).__name__}: {error}") from error


Location = Path | RemoteFile


def is_url(place: str) -> bool:
    return "://" in place


def file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def size_of(file: Location) -> int:
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def time_of_change(file: Location) -> int:
    """In ns; 0 for a remote file, which never changes."""
    return 0 if isinstance(file, RemoteFile) else file.stat().st_mtime_ns


def read_range(file: Location, start: int, stop: int, *, keep_if: Callable[[bytes], bool] | None = None) -> bytes:
    """Bytes `start` to `stop` of a file, all of them or `DamagedFile`.

    With `keep_if` the bytes of a remote file come from its cache, or go there; but only where it accepts them.
    """
    if isinstance(file, RemoteFile):
        if keep_if is not None and file.cache is not None:
            key = f"{file.url}\n{start}\n{stop}"
            return file.cache.get(key, lambda: _whole(file.read(start, stop), stop - start), keep_if)
        return _whole(file.read(start, stop), stop - start)
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        parts, missing = [], stop - start
        while missing:
            part = opened.read(missing)
            if not part:
                raise DamagedFile(_truncated(stop - min(os.fstat(opened.fileno()).st_size, stop - missing)))
            parts.append(part)
            missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise DamagedFile(_truncated(size - len(data)))
    return data


def _truncated(missing: int) -> str:
    return f"it is truncated: {missing:,} bytes are missing"
