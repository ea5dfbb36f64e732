"""Tahoe's files from the hub (a server on this machine that answers as it does): downloaded, or left where they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stub import COMMIT, hub
from shared_data import ROOT
from tahoe_folder import first_batches, prepared, small_tahoe

from mdsc.data.manifest import load_manifest
from mdsc.data.shards import ShardFolder

NAME = "somebody/Tahoe-small"
READ = """
import sys
from hashlib import sha256
from pathlib import Path
from tahoe_folder import first_batches
from mdsc.data.range_cache import RangeCache
from mdsc.data.shards import ShardFolder
folder = ShardFolder.open(sys.argv[1], cache=RangeCache(Path(sys.argv[2]), 10**8))
found = first_batches(folder, workers=int(sys.argv[3]))
print(sha256(b"".join(value.tobytes() for batch in found for value in batch.values())).hexdigest())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small_tahoe(tmp_path_factory.mktemp("tahoe") / "published")


def run(folder: Path, endpoint: str, *command: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "PYTHONPATH": paths}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def prepare(folder: Path, endpoint: str, *options: str) -> subprocess.CompletedProcess:
    script = str(ROOT / "data_prep/tahoe.py")
    return run(folder, endpoint, script, "--source", NAME, "--output-dir", "s", "--num-workers", "1", *options)


def tokens(folder: ShardFolder) -> str:
    from hashlib import sha256

    return sha256(b"".join(value.tobytes() for batch in first_batches(folder) for value in batch.values())).hexdigest()


@pytest.mark.slow
def test_files_are_streamed_by_ranges(source, tmp_path):
    local = prepared(source, tmp_path / "local")
    with hub(NAME, source) as (endpoint, requests):
        done = prepare(tmp_path, endpoint, "--stream")
        assert done.returncode == 0, done.stderr
        assert load_manifest(tmp_path / "s").root == f"hf://datasets/{NAME}@{COMMIT}/"
        expression = [request for request in requests if "/resolve/" in request and "train-" in request]
        assert expression
        assert all("bytes=" in request for request in expression), "no file is fetched whole"
        for cached, workers in ((False, "2"), (True, "2"), (True, "0")):
            requests.clear()
            done = run(tmp_path, endpoint, "-c", READ, "s", "cache", workers)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == tokens(local)
            groups = {request for request in requests if "train-" in request}
            # From the cache there are two requests a file, for its footer; each worker asks for itself.
            assert (len(groups) <= 2 * len(local.manifest.shards)) is cached


@pytest.mark.slow
def test_chosen_files_are_downloaded_once(source, tmp_path):
    with hub(NAME, source) as (endpoint, requests):
        done = prepare(tmp_path, endpoint, "--max-shards", "2", "--download-dir", "here")
        assert done.returncode == 0, done.stderr
        assert "2 of the 3 files" in done.stdout
        files = sorted(path.name for path in (tmp_path / "here/data").glob("*.parquet"))
        assert files == ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"]
        folder = ShardFolder.open(tmp_path / "s")
        assert folder.manifest.root == str(tmp_path / "here")
        assert folder.num_cells() == 250 + 220
        folder.read(folder.row_groups()[-1])
        requests.clear()
        assert prepare(tmp_path, endpoint, "--max-shards", "2", "--download-dir", "here").returncode == 0
        assert not [request for request in requests if request.startswith("GET /datasets") and "train-" in request]


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_told(source, tmp_path):
    with hub("somebody/else", source) as (endpoint, _):
        done = prepare(tmp_path, endpoint)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --source {NAME}: there is no such folder, and the hub does not give")
    assert "Traceback" not in done.stderr
