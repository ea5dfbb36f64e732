"""Steps of a benchmark that are done once: a benchmark can be stopped at any moment and started again."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from mdsc.atomic import replacing


def once(note: Path, settings: dict, step: Callable[[], dict | None]) -> dict:
    """What the step gave: of an earlier time if `note` tells of the same settings, else of running it now.

    The note is written after the step, with its seconds: a step that was interrupted has none, and is done anew.
    """
    settings = json.loads(json.dumps(settings))
    if note.is_file():
        done = json.loads(note.read_text(encoding="utf-8"))
        if done["settings"] == settings:
            return done
    note.unlink(missing_ok=True)
    start = time.perf_counter()
    gave = step()
    done = {"settings": settings, "seconds": time.perf_counter() - start, "result": gave}
    with replacing(note) as beside:
        beside.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return done
