"""What the processes of a run have quarantined, brought together: told once, and given to the checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from accelerate import Accelerator

from mdsc.data.quarantine import Quarantined, from_json, to_json
from mdsc.training.progress import RunProgress
from mdsc.training.tracking import Tracker


class QuarantineLog:
    """`found` gives what this process has quarantined so far; `known` an earlier part of the run has told. The
    tracker is the main process's."""

    def __init__(
        self,
        accelerator: Accelerator,
        found: Callable[[], Sequence[Quarantined]],
        progress: RunProgress,
        tracker: Tracker | None = None,
        known: Sequence[Quarantined] = (),
    ):
        self._accelerator = accelerator
        self._found = found
        self._progress = progress
        self._tracker = tracker
        self._known = {(one.file, one.group): one for one in known}
        self._sent: set[Quarantined] = set()

    def update(self, step: int) -> tuple[Quarantined, ...]:
        """What all processes have quarantined, each row group once. To be called on all of them at the same step."""
        mine = tuple(self._found())
        news = [one for one in mine if one not in self._sent]
        self._sent.update(news)
        for one in self._of_all(news):
            if (one.file, one.group) not in self._known:
                self._progress.say(f"warning: {one}")
                if self._tracker is not None:
                    self._tracker.event(step, "quarantined", asdict(one))
            self._known[one.file, one.group] = one
        return tuple(self._known.values())

    def _of_all(self, news: list[Quarantined]) -> list[Quarantined]:
        """The news of all processes, in the order of their ranks. Sent as text: nothing is unpickled."""
        if self._accelerator.num_processes == 1:
            return news
        text = to_json(news).encode() if news else b""
        device = self._accelerator.device
        sizes = self._accelerator.gather(torch.tensor([len(text)], device=device)).tolist()
        if not any(sizes):  # nearly always
            return []
        padded = torch.zeros(1, max(sizes), dtype=torch.uint8, device=device)
        padded[0, : len(text)] = torch.frombuffer(bytearray(text or b"0"), dtype=torch.uint8)[: len(text)].to(device)
        texts = self._accelerator.gather(padded).cpu()
        return [
            one
            for row, size in zip(texts, sizes, strict=True)
            if size
            for one in from_json(bytes(row[:size].tolist()), "another process")
        ]
