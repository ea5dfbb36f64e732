"""What went wrong between us and a hub, in one line that says what to do, and that never holds a token."""

import os
import re

from mdsc.hub.repository import Repository

SECRETS = (
    (re.compile(r"\bhf_\w+"), "***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), r"\1 ***"),
    (re.compile(r"//[^/@\s]+@"), "//***@"),  # user:password of a URL
)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def without_secrets(text: str) -> str:
    """The text without tokens: this machine's, whatever it looks like, and all that look like one."""
    from huggingface_hub import get_token

    for known in (get_token(), os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")):
        if known and known.strip():
            text = text.replace(known.strip(), "***")
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def push_failure(error: BaseException, repo: str) -> str:
    """Why nothing was pushed to `repo`."""
    status = _status(error := _root(error))
    if status == 401:
        reason = f"the hub does not accept the token (401): {LOG_IN}"
    elif status == 403:
        reason = f"the token may not write to {repo} (403): take one with write access, or a repository of your own"
    elif status == 404:
        reason = f"the hub has no {repo}, or does not show it to this token (404): check the name"
    elif _is_network(error):
        reason = f"the hub at {_endpoint()} does not answer ({_first_line(error)})"
    else:
        reason = _first_line(error)
    return without_secrets(reason)


def pull_failure(error: BaseException, repo: Repository) -> str:
    """Why `repo` cannot be read."""
    from huggingface_hub import errors, get_token

    error = _root(error)
    status = _status(error)
    account = "that token's account" if get_token() else "anyone who is not logged in"
    if isinstance(error, errors.GatedRepoError):
        reason = f"{repo.name} is gated: ask for access on its page {_endpoint()}/{repo.name}, then {LOG_IN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"{repo.name} has no revision {repo.revision or 'main'}"
    elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        reason = f"the hub shows no model {repo.name} to {account}: check the name; if it is private, {LOG_IN}"
    elif status == 403:
        reason = f"the hub does not let {account} read {repo.name} (403): ask its owner"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        reason = f"HF_HUB_OFFLINE is set, and {repo} is not in the cache: unset it, or load it once while online"
    elif _is_network(error):
        reason = f"the hub at {_endpoint()} does not answer, and {repo} is not in the cache ({_first_line(error)})"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        reason = f"{repo} is not in the cache, or not whole there, and no download was allowed"
    else:
        reason = _first_line(error)
    return without_secrets(reason)


def _root(error: BaseException) -> BaseException:
    """The library wraps what happened: in "not found in the cache", or in "error while uploading"."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while (
        isinstance(error, LocalEntryNotFoundError | RuntimeError)
        and not isinstance(error, HfHubHTTPError)
        and error.__cause__ is not None
    ):
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_network(error: BaseException) -> bool:
    """Of the HTTP library under huggingface_hub, which has changed before: known by names, not by import."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "RequestException"})


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
