"""Tahoe's files read from far away: the same tokens as from here, each row group once, errors that say what it was."""

from pathlib import Path

import pytest
from tahoe_folder import first_batches, prepared, same, small_tahoe

from mdsc.data.range_cache import RangeCache
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.tahoe import TahoeConfig, prepare_tahoe


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small_tahoe(tmp_path_factory.mktemp("tahoe") / "published")


@pytest.fixture
def in_memory(source):
    """The published files in fsspec's memory, as a URL, and a list of what was read of them."""
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(str(source), "/tahoe", recursive=True)
    yield "memory://tahoe"
    system.rm("/tahoe", recursive=True)


def test_streamed_tokens_are_those_of_local_files(source, in_memory, tmp_path):
    local = prepared(source, tmp_path / "local", heldout_fraction=0.1)
    streamed = prepared(in_memory, tmp_path / "streamed", heldout_fraction=0.1)
    assert streamed.manifest.root == "memory://tahoe/"
    assert streamed.manifest.conditions == local.manifest.conditions
    assert (streamed.statistics.mean_count == local.statistics.mean_count).all()
    assert same(first_batches(local), first_batches(streamed))
    cached = ShardFolder.open(streamed.path, cache=RangeCache(tmp_path / "cache", 10**8))
    assert same(first_batches(local), first_batches(cached))
    assert same(first_batches(local), first_batches(cached)), "from the cache"


def test_each_row_group_is_fetched_once_where_the_cache_has_room(in_memory, tmp_path, monkeypatch):
    prepared(in_memory, tmp_path / "s")
    folder = ShardFolder.open(tmp_path / "s", cache=RangeCache(tmp_path / "cache", 10**8))
    from mdsc.data import byte_ranges

    fetched = []

    def read(self, start, stop, *, real=byte_ranges.RemoteFile.read):
        fetched.append((self.url, start, stop))
        return real(self, start, stop)

    monkeypatch.setattr(byte_ranges.RemoteFile, "read", read)
    for _ in range(3):
        for ref in folder.row_groups():
            folder.read(ref)
    groups = sum(len(shard.row_groups) for shard in folder.manifest.shards)
    assert len(fetched) == groups + 2 * len(folder.manifest.shards), "two reads give a footer"


def test_only_what_was_hashed_is_checked(in_memory, tmp_path):
    kinds = {}
    for name, options in {"footers": {}, "all": {"hash_streamed": True}, "none": {"hashes": False}}.items():
        config = TahoeConfig(source=in_memory, output_dir=tmp_path / name, num_workers=1, **options)
        folder, lines = prepare_tahoe(config)
        kinds[name] = tuple(map(bool, folder.manifest.shards[0].hashes)), lines[-1]
    assert kinds["footers"][0] == (True, False, False, True)
    assert kinds["footers"][1].startswith("of streamed files the footers and first row groups are hashed")
    assert kinds["all"][0] == (True, True, True, True)
    assert kinds["none"][0] == ()
    assert kinds["none"][1].startswith("without hashes")


def test_a_wrong_row_group_is_told_and_not_kept(in_memory, tmp_path):
    import fsspec

    cache = RangeCache(tmp_path / "cache", 10**8)
    prepared(in_memory, tmp_path / "s", hash_streamed=True)
    folder = ShardFolder.open(tmp_path / "s", cache=cache)
    ref = folder.row_groups()[1]
    right = folder.read(ref)
    system = fsspec.filesystem("memory")
    path = f"/tahoe/{ref.file}"
    content = bytearray(system.cat(path))
    whole = bytes(content)
    content[len(content) // 2] ^= 16
    system.pipe(path, bytes(content))
    for entry in (tmp_path / "cache").glob("*.range"):
        entry.unlink()
    with pytest.raises(UserError, match=r"train-00000-of-00003\.parquet, row group 1: .*hash differs"):
        folder.read(ref)
    assert not list((tmp_path / "cache").glob("*.range"))
    system.pipe(path, whole)
    assert (folder.read(ref).counts == right.counts).all()
    system.rm(path)
    assert (folder.read(ref).counts == right.counts).all(), "from the cache"
    with pytest.raises(UserError, match=r"memory://tahoe/data/train-00000-of-00003\.parquet, row group 2"):
        folder.read(folder.row_groups()[2])


def test_train_keeps_row_groups_within_the_bound(source, tmp_path):
    from mdsc.training.command import main as train

    prepared(source.as_uri(), tmp_path / "s")
    flags = "--model.hidden-size 16 --model.num-layers 1 --model.num-heads 2 --model.state-size 4 --model.factor-size 4"
    run = "--train.max-steps 3 --train.pathway-steps 0 --train.global-batch-size 16 --data.num-lanes 4"
    cache = f"--data.cache-dir {tmp_path}/kept --data.cache-bytes 60000"
    train(f"--data.dir {tmp_path}/s --output-dir {tmp_path}/run {flags} {run} {cache}".split())
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "kept").glob("*.range")) <= 60_000
    assert not (tmp_path / "s/cache").exists()


def test_what_was_not_hashed_is_no_fault(in_memory, tmp_path):
    from mdsc.prep.verify import faults

    folder = prepared(in_memory, tmp_path / "s")
    assert list(faults(folder, num_workers=1, fast=False, checked=lambda _: None)) == []
