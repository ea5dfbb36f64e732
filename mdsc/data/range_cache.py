"""A folder of byte ranges that were read from far away, of bounded size; the least recently used ones go first.

Any number of processes may share it. An entry is written beside and renamed, so that no reader meets half of one; it
begins with its own hash, so that a damaged one is read anew instead of being believed. What holds the bound is a lock,
taken only to add: under it the sizes are known from one small file, and the folder is listed only when it is full.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DIGEST_BYTES = 32
SUFFIX = ".range"
# A full cache is emptied to this share, so that the folder is listed once in many additions.
KEPT_SHARE = 0.9


@dataclass(frozen=True)
class RangeCache:
    folder: Path
    max_bytes: int
    """Of all entries together."""

    def get(self, key: str, fetch: Callable[[], bytes], accept: Callable[[bytes], bool]) -> bytes:
        """The bytes under `key`, fetched where they are not here, not whole or not accepted; kept if they are."""
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}{SUFFIX}"
        data = _entry(path)
        if data is not None and accept(data):
            return data
        data = fetch()
        if accept(data):
            self._add(path, data)
        return data

    def _add(self, path: Path, data: bytes) -> None:
        size = DIGEST_BYTES + len(data)
        if size > self.max_bytes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            total = self._counted()
            if total + size > self.max_bytes:
                total = self._evict(min(int(KEPT_SHARE * self.max_bytes), self.max_bytes - size))
            # Counted before it is written: a process that dies in between leaves a count that is too high, not too low.
            (self.folder / "total").write_text(str(total + size))
            beside = self.folder / f"{os.getpid()}.partial"
            beside.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(beside, path)

    def _counted(self) -> int:
        try:
            return int((self.folder / "total").read_text())
        except (OSError, ValueError):
            return self.max_bytes  # unknown: list the folder

    def _evict(self, most: int) -> int:
        """Remove the entries that were used longest ago until `most` bytes are left; give how many there are."""
        for left_behind in self.folder.glob("*.partial"):  # nobody else is writing: the lock is ours
            left_behind.unlink(missing_ok=True)
        entries = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry in self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= most:
                break
            os.unlink(path)
            total -= size
        return total

    def _entries(self) -> Iterator[os.DirEntry]:
        with os.scandir(self.folder) as entries:
            yield from (entry for entry in entries if entry.name.endswith(SUFFIX))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # no such thing on Windows, where all but this works

        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _entry(path: Path) -> bytes | None:
    """A whole entry, marked as used now; None where there is none, or a damaged one."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    data = stored[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != stored[:DIGEST_BYTES]:
        return None
    with suppress(FileNotFoundError):  # evicted since
        os.utime(path)
    return data
