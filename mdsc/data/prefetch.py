"""An iterator that a background thread runs ahead of its consumer, and that always ends cleanly."""

import sys
from collections.abc import Iterator
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def prefetched(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """`items`, up to `depth` of them computed ahead; 0 computes each when it is asked for, without a thread.

    An exception of `items` is raised in the consumer, after the items that came before it. When the consumer stops
    (break, exception, `close()`), the thread has closed `items` and ended before this returns.
    """
    if depth == 0:
        yield from items
        return

    queue: Queue = Queue(maxsize=depth)
    stopped = Event()

    def run() -> None:
        last: object = _END
        try:
            for item in items:
                queue.put((item, None))
                if stopped.is_set():
                    break
            getattr(items, "close", lambda: None)()  # here, where it was begun
        except BaseException as error:  # also a KeyboardInterrupt must not leave the consumer waiting
            last = error
        queue.put((_END, last))

    thread = Thread(target=run, name="mdsc-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if item is _END:
                if error is not _END:
                    raise error
                return
            yield item
    finally:
        stopped.set()
        # A process that is ending has stopped the thread for good, without a sign.
        while thread.is_alive() and not sys.is_finalizing():
            try:  # room for what the thread still wants to put
                queue.get(timeout=0.05)
            except Empty:
                continue
