"""`mdsc push`: a checkpoint to a model repository of the hub, with a filled model card.

mdsc push --checkpoint runs/a --repo user/name --license cc-by-4.0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from mdsc.checkpoint import given_or_newest, load_checkpoint
from mdsc.errors import UserError
from mdsc.hub.failures import LOG_IN, push_failure
from mdsc.hub.repository import check_name
from mdsc.hub.upload import Remote, push_folder
from mdsc.publish.card_facts import last_saved_step
from mdsc.publish.card_file import check_license, write_card
from mdsc.publish.snapshot import Snapshot, take_snapshot


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    repo: str
    """Model repository to push to, user/name; made where it is not there. The token is that of `hf auth login`, or
    HF_TOKEN."""
    checkpoint: Path | None = None
    """Folder of the run; by default the newest run in runs/."""
    private: bool = True
    """Whether a repository that is made is private; one that is there stays what it is."""
    license: str = "unknown"
    """Licence of the weights for the model card, as the hub names it (apache-2.0, cc-by-4.0, ...)."""


def main(argv: Sequence[str]) -> None:
    """Run the command; UserError for a user's mistake, before anything is sent."""
    push(tyro.cli(PushConfig, args=argv, description=__doc__))


def push(config: PushConfig) -> Remote:
    """Do it, and say where the checkpoint is now."""
    from huggingface_hub import get_token

    check_name(config.repo, "--repo")
    check_license(config.license, "--license")
    run = config.checkpoint or given_or_newest(None, print)
    if not run.is_dir():
        raise UserError(f"--checkpoint: there is no folder {run}.")
    if not get_token():
        raise UserError(f"there is no token of the hub on this machine: {LOG_IN}.")
    with _beside(run) as folder:
        snapshot = take_snapshot(run, Path(folder) / "push", last_saved_step(run), with_picture=True)
        _check_readable(snapshot, run)
        if not write_card(snapshot, run, config.repo, config.license):
            print(f"the model card is {run / 'README.md'}, as it stands there")
        remote = _push(snapshot, config)
    print(f"pushed {snapshot.label} to {remote.url} ({'private' if remote.is_private else 'PUBLIC'})")
    return remote


def _beside(run: Path) -> TemporaryDirectory:
    """A folder for the snapshot: in the run's, so that files can be linked; elsewhere where nobody may write there."""
    try:
        return TemporaryDirectory(prefix=".push-", dir=run)
    except OSError:
        return TemporaryDirectory(prefix="mdsc-push-")


def _check_readable(snapshot: Snapshot, run: Path) -> None:
    """Nobody should download what cannot be read."""
    try:
        load_checkpoint(snapshot.folder)
    except UserError as error:
        raise UserError(str(error).replace(str(snapshot.folder), str(run))) from error


def _push(snapshot: Snapshot, config: PushConfig) -> Remote:
    message = f"{snapshot.label[0].upper()}{snapshot.label[1:]}"
    try:
        return push_folder(snapshot.folder, config.repo, private=config.private, message=message)
    except Exception as error:  # the library raises what the layers under it do
        raise UserError(f"--repo {config.repo}: nothing was pushed: {push_failure(error, config.repo)}.") from error
