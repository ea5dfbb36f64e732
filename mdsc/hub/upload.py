"""A folder becomes one commit of a model repository: whoever reads it sees all of its files, or none."""

import warnings
from dataclasses import dataclass
from pathlib import Path

# What a commit may remove: files of an earlier one that this folder no longer has. All else in a repository stays.
OPTIONAL = ("quarantined.json", "loss.png")


@dataclass(frozen=True)
class Remote:
    """Where things went."""

    url: str
    is_private: bool


def make_repository(repo: str, *, private: bool) -> Remote:
    """Make it if it is not there; one that is there keeps its visibility, whatever `private` says."""
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(repo, private=private, exist_ok=True)
    return Remote(str(url), bool(api.model_info(repo).private))


def push_folder(folder: Path, repo: str, *, private: bool, message: str) -> Remote:
    """Push all files of `folder`. Raises what huggingface_hub raises; see `failures`."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    remote = make_repository(repo, private=private)
    api = HfApi()
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    there = set(api.list_repo_files(repo))
    gone = [name for name in OPTIONAL if name in there and not (folder / name).exists()]
    operations = [
        *(CommitOperationAdd(path.name, path) for path in paths),
        *(CommitOperationDelete(name) for name in gone),
    ]
    with warnings.catch_warnings():
        # It asks whether a parquet file is meant to be here: genes.parquet is.
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        # Not `upload_folder`: that one may spread a folder over several commits.
        api.create_commit(repo, operations, commit_message=message)
    return remote
