"""Where Tahoe-100M's expression files are: a folder, a dataset of the hub, or any URL that fsspec reads.

The published layout is data/train-00000-of-03388.parquet, ... and metadata/gene_metadata.parquet, ...
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdsc.data.byte_ranges import Location, RemoteFile, file_system, is_url
from mdsc.errors import UserError
from mdsc.prep.tahoe_metadata import SideTables

SHARD = re.compile(r"train-\d+-of-(\d+)\.parquet")
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class TahoeSource:
    """Some files below a root."""

    root: str
    """An absolute folder, or a URL that ends with "/"."""
    files: tuple[tuple[str, int], ...]
    """Name below the root and size in bytes, sorted."""

    @property
    def is_remote(self) -> bool:
        return is_url(self.root)

    def location(self, file: str) -> Location:
        return RemoteFile(self.root + file, dict(self.files)[file]) if self.is_remote else Path(self.root) / file

    def side_tables(self, metadata: Path | None) -> SideTables:
        if metadata is not None and not any(metadata.glob("*_metadata.parquet")):
            what = "has no tables (gene_metadata.parquet, ...)" if metadata.is_dir() else "is no folder"
            raise UserError(f"--metadata {metadata} {what}: give the folder of Tahoe's side tables, or leave it out")
        own = [f"{self.root.rstrip('/')}/metadata", self.root.rstrip("/")]
        return SideTables((str(metadata), *own) if metadata is not None else tuple(own))

    def of_published(self) -> int:
        """How many files the published set has, by their names."""
        return max(int(SHARD.search(file)[1]) for file, _ in self.files)


def find_source(source: str) -> TahoeSource:
    """All expression files of a folder, of `owner/name[@revision]` on the hub, or under a URL. Reads no file."""
    if Path(source).is_dir():
        root = str(Path(source).resolve())
        return _listed(root, source)
    if is_url(source):
        return _listed(source.rstrip("/") + "/", source)
    found = REPOSITORY.fullmatch(source)
    if found is None:
        raise UserError(f"--source {source}: there is no such folder, and it is no owner/name of a dataset on the hub")
    return _listed(f"hf://datasets/{found[1]}@{_commit(source, found[1], found[2])}/", source)


def _commit(source: str, name: str, revision: str | None) -> str:
    """The commit that a revision (default: the main branch) is now."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # no network, no such dataset, no access: the library says which
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--source {source}: there is no such folder, and the hub does not give a dataset of that name:\n{reason}"
        ) from error


def _listed(root: str, source: str) -> TahoeSource:
    files = []
    try:
        for below in ("data/", ""):
            system, path = file_system(f"{root.rstrip('/')}/{below}")
            if system.isdir(path):
                for entry in system.ls(path, detail=True):
                    name = entry["name"].rpartition("/")[2]
                    if SHARD.fullmatch(name):
                        files.append((below + name, int(entry["size"])))
            if files:
                return TahoeSource(root, tuple(sorted(files)))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"--source {source} cannot be listed: {str(error).splitlines()[0]}") from error
    raise UserError(
        f"--source {source} has no expression files: data/train-00000-of-03388.parquet and so on are expected there"
    )


def download(source: TahoeSource, files: Sequence[str], folder: Path | None) -> TahoeSource:
    """Fetch these files and the side tables from the hub, and give the same source as a folder.

    What is there already is not fetched again, and a file that was cut off is continued. Without `folder` they go to
    the cache of huggingface_hub.
    """
    from huggingface_hub import snapshot_download

    name, commit = source.root.removeprefix("hf://datasets/").rstrip("/").split("@")
    try:
        root = snapshot_download(
            name,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=[*files, "metadata/*_metadata.parquet", "*_metadata.parquet"],
            # Two tables of gigabytes each that nothing here reads.
            ignore_patterns=["*obs_metadata*", "*pseudobulk*"],
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} could not be downloaded; the same command goes on where it stopped:\n{reason}"
        ) from error
    sizes = dict(source.files)
    return TahoeSource(str(Path(root).resolve()), tuple((file, sizes[file]) for file in files))
