"""An upload in a process of its own, so that no hub can hold up, slow down or crash a run.

    python -m mdsc.hub.upload_process '{"parent": 123, "repo": "user/name", "private": true, "folder": null, ...}'

Its last line of output is {"url": ..., "is_private": ...} or {"error": ...}. It reads the token itself, where
huggingface_hub keeps it: none is ever an argument. It ends with the process that started it.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from mdsc.hub.failures import push_failure
from mdsc.hub.upload import make_repository, push_folder


def main() -> None:
    job = json.loads(sys.argv[1])
    threading.Thread(target=_end_with, args=(job["parent"],), daemon=True).start()
    try:
        if job["folder"] is None:
            remote = make_repository(job["repo"], private=job["private"])
        else:
            remote = push_folder(Path(job["folder"]), job["repo"], private=job["private"], message=job["message"])
        answer = asdict(remote)
    except Exception as error:  # whatever it is, the run goes on
        answer = {"error": push_failure(error, job["repo"])}
    print(json.dumps(answer), flush=True)


def _end_with(parent: int) -> None:
    """A run that was killed leaves no process behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
