"""Names of models on a hub: `user/name`, or `user/name@revision` where one is read."""

import re
from dataclasses import dataclass
from pathlib import Path

from mdsc.errors import UserError

PATTERN = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Repository:
    name: str
    """user/name"""
    revision: str | None = None
    """A branch, a tag or a commit; None for the main branch."""

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def as_repository(text: str) -> Repository | None:
    """The repository that a text names, or None where it cannot be the name of one. Looks at no folder."""
    found = PATTERN.fullmatch(text)
    return Repository(found[1], found[2]) if found and is_valid(found[1]) else None


def check_name(name: str, flag: str) -> None:
    """UserError where nothing can be pushed to a repository of this name."""
    if name.count("/") != 1 or not is_valid(name):
        raise UserError(
            f"{flag}: {name!r} is no name of a repository; give user/name, of letters, digits, '-', '_' and '.'."
        )


def is_valid(name: str) -> bool:
    """Whether the hub takes it; the rule is huggingface_hub's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return PATTERN.fullmatch(name) is not None


def name_of_cached(folder: Path) -> str | None:
    """`user/name@commit` of a folder in huggingface_hub's cache; None for any other folder."""
    kept, snapshots, commit = folder.absolute().parts[-3:] if len(folder.absolute().parts) > 3 else ("", "", "")
    if snapshots != "snapshots" or not kept.startswith("models--"):
        return None
    return f"{kept.removeprefix('models--').replace('--', '/')}@{commit}"
