"""A checkpoint from a hub: the files that are needed and no others, into huggingface_hub's cache; never a pickle."""

from collections.abc import Sequence
from pathlib import Path

from mdsc.errors import UserError
from mdsc.hub.failures import pull_failure
from mdsc.hub.repository import Repository

WEIGHTS = "model.safetensors"
MODEL_FILES = ("config.json", WEIGHTS)
"""What `from_pretrained` reads."""
CHECKPOINT_FILES = (*MODEL_FILES, "genes.parquet", "tokenizer.json", "training.yaml", "quarantined.json")
"""What `mdsc.checkpoint` reads; the last two need not be there."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def download(
    repo: Repository,
    files: Sequence[str] = CHECKPOINT_FILES,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder in the cache that holds these files, all of one commit. Raises UserError in one or two lines.

    Without a network, or with HF_HUB_OFFLINE, it is what was loaded last.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repo.name,
                revision=repo.revision,
                allow_patterns=list(files),
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                library_name="mdsc",
            )
        )
    except Exception as error:  # the library raises what the layers under it do
        raise UserError(f"{repo}: {pull_failure(error, repo)}.") from error
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        pickled = [name for name in _listed(repo, folder.name, token) if name.endswith(PICKLES)]
        if WEIGHTS in missing and pickled:
            raise UserError(
                f"{repo} has its weights as a pickle alone ({pickled[0]}), which can run any code:\n"
                f"mdsc never loads one; ask its owner for {WEIGHTS}."
            )
        raise UserError(f"{repo} has no {' and no '.join(missing)}: it is no checkpoint of mdsc.")
    return folder


def _listed(repo: Repository, commit: str, token: str | bool | None) -> list[str]:
    """Files of the repository, as far as the hub tells; for a message alone."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(repo.name, revision=commit, token=token)
    except Exception:
        return []
