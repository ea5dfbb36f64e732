"""The same work on many files: in several processes, with a bar, and with what is done kept for the next try."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mdsc.atomic import replacing
from mdsc.errors import UserError


def on_files(
    work: Callable, tasks: Mapping[str, tuple], *, what: str, num_workers: int, in_threads: bool = False
) -> Iterator[tuple[str, object]]:
    """`work(*arguments)` of each file, as they are done; nothing is begun after the first error.

    Args:
        tasks: arguments of each file.
        num_workers: processes (or threads, for work that waits for a network); below 2 it is done here.
    """
    console = Console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        yield from bar.track(_results(work, tasks, num_workers, in_threads), total=len(tasks), description=what)


def _results(
    work: Callable, tasks: Mapping[str, tuple], num_workers: int, in_threads: bool
) -> Iterator[tuple[str, object]]:
    if min(num_workers, len(tasks)) < 2:
        yield from ((name, work(*arguments)) for name, arguments in tasks.items())
        return
    pool: Executor
    # Forked processes would inherit arrow's locks, and wait for threads that they do not have.
    pool = ThreadPoolExecutor(num_workers) if in_threads else ProcessPoolExecutor(num_workers, get_context("spawn"))
    try:
        name_of = {pool.submit(work, *arguments): name for name, arguments in tasks.items()}
        for future in as_completed(name_of):
            yield name_of[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def going_on(output: Path) -> Iterator[None]:
    """For commands that keep what is done of files beside their output: they tell so when they are ended early."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    except UserError as error:
        output = output.absolute()
        names = (f".{output.name}.parts", f".{output.name}.unfinished-*")
        kept = [str(path) for name in names for path in output.parent.glob(name)]
        if kept:
            rest = f"What is done of other files waits in {', '.join(kept)} (without a next try, remove that)"
            raise UserError(f"{error}\n{rest}") from error
        raise


class DoneFiles:
    """Results of files, kept beside the output until it is complete.

    What was asked is part of the folder's name: results of another question are not taken for this one's.
    """

    def __init__(self, output: Path, question: object) -> None:
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:12]
        self._prefix = f".{output.name}.unfinished-"
        self.folder = output.with_name(self._prefix + key)

    def get(self, file: str, state: object) -> dict | None:
        """The kept result, if the file is still in this state (size, time of change)."""
        try:
            stored = json.loads(self._path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return stored["result"] if stored.get("file") == file and stored.get("state") == state else None

    def put(self, file: str, state: object, result: dict) -> None:
        with replacing(self._path(file)) as beside:
            beside.write_text(json.dumps({"file": file, "state": state, "result": result}), encoding="utf-8")

    def forget(self) -> None:
        """The output is complete: remove this and what other questions for the same output left."""
        for folder in self.folder.parent.glob(f"{self._prefix}*"):
            shutil.rmtree(folder)

    def _path(self, file: str) -> Path:
        return self.folder / f"{hashlib.sha256(file.encode()).hexdigest()[:20]}.json"
