"""The cache of byte ranges: what was put in comes out, damage is read anew, and its bound holds for any processes."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from mdsc.data.byte_ranges import DamagedFile, RemoteFile, read_range
from mdsc.data.range_cache import RangeCache


def anything(data: bytes) -> bool:
    return True


def no_fetch() -> bytes:
    raise AssertionError("it was in the cache")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".range", ".partial"))


def test_what_was_fetched_is_kept(tmp_path):
    cache = RangeCache(tmp_path / "c", 1000)
    assert cache.get("a", lambda: b"one", anything) == b"one"
    assert cache.get("a", no_fetch, anything) == b"one"
    assert cache.get("b", lambda: b"two", anything) == b"two"


def test_what_is_damaged_or_not_accepted_is_fetched_anew(tmp_path):
    cache = RangeCache(tmp_path, 1000)
    cache.get("a", lambda: b"one", anything)
    (entry,) = tmp_path.glob("*.range")
    content = bytearray(entry.read_bytes())
    for place in (3, -1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        entry.write_bytes(damaged)
        assert cache.get("a", lambda: b"one", anything) == b"one"
    entry.write_bytes(b"")
    assert cache.get("a", lambda: b"one", anything) == b"one"
    assert cache.get("a", lambda: b"other", lambda data: data == b"other") == b"other"
    assert cache.get("x", lambda: b"wrong", lambda data: False) == b"wrong"
    assert cache.get("x", lambda: b"right", anything) == b"right", "what is not accepted is not kept"


def test_the_least_recently_used_go_first(tmp_path):
    cache = RangeCache(tmp_path, 4 * (100 + 32))
    for number, name in enumerate("abcd"):
        cache.get(name, lambda: bytes(100), anything)
        for entry in tmp_path.glob("*.range"):
            if entry.stat().st_mtime > 1000:
                os.utime(entry, (number, number))
    cache.get("a", no_fetch, anything)  # used again
    cache.get("e", lambda: bytes(100), anything)
    cache.get("a", no_fetch, anything)
    cache.get("e", no_fetch, anything)
    with pytest.raises(AssertionError):
        cache.get("b", no_fetch, anything)


@pytest.mark.parametrize("bound", [0, 31, 500, 3000])
def test_the_bound_holds(tmp_path, bound: int):
    cache = RangeCache(tmp_path / "c", bound)
    rng = np.random.default_rng(0)
    for number in rng.integers(0, 40, 300):
        data = bytes([number]) * int(10 + 7 * number)
        assert cache.get(str(number), lambda data=data: data, anything) == data
        assert not cache.folder.exists() or size(cache.folder) <= bound
    assert bound < 500 or size(cache.folder) > bound / 2, "it is used"


def fill(folder: str, seed: int) -> tuple[int, int]:
    cache, most, wrong = RangeCache(Path(folder), 5000), 0, 0
    for number in np.random.default_rng(seed).integers(0, 60, 200):
        data = bytes([number]) * 300
        wrong += cache.get(str(number), lambda data=data: data, anything) != data
        try:
            most = max(most, size(cache.folder))
        except FileNotFoundError:  # evicted by another process while it was listed
            continue
    return most, wrong


def test_processes_share_it(tmp_path):
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        results = list(pool.map(fill, [str(tmp_path)] * 3, range(3)))
    assert max(most for most, _ in results) <= 5000
    assert sum(wrong for _, wrong in results) == 0


def test_what_a_killed_process_left_is_cleared(tmp_path):
    cache = RangeCache(tmp_path, 1000)
    cache.get("a", lambda: bytes(400), anything)
    (tmp_path / "99999.partial").write_bytes(bytes(900))
    (tmp_path / "total").write_text("")
    cache.get("b", lambda: bytes(400), anything)
    assert size(tmp_path) == 2 * 432


def test_ranges_of_a_url(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    url = path.as_uri()
    assert read_range(RemoteFile(url, 200), 10, 13) == bytes([10, 11, 12])
    cached = RemoteFile(url, 200, RangeCache(tmp_path / "c", 1000))
    assert read_range(cached, 10, 13, keep_if=anything) == bytes([10, 11, 12])
    path.write_bytes(bytes(200))
    assert read_range(cached, 10, 13, keep_if=anything) == bytes([10, 11, 12])
    assert read_range(cached, 10, 13) == bytes(3)
    with pytest.raises(DamagedFile, match="truncated: 5 bytes are missing"):
        read_range(RemoteFile(url, 300), 195, 205)
    with pytest.raises(OSError, match="gone"):
        read_range(RemoteFile((tmp_path / "gone").as_uri(), 300), 0, 5)


def test_all_that_lacks_of_a_file_is_told(tmp_path):
    (tmp_path / "half").write_bytes(bytes(500))
    for start, stop in ((992, 1000), (400, 1000)):
        with pytest.raises(DamagedFile, match="truncated: 500 bytes are missing"):
            read_range(tmp_path / "half", start, stop)
