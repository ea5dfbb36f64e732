"""Runs of one or two processes that start at once: a server that has done the imports forks them.

A fork from the tests' own process would not do: torch refuses backward passes after one there.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

LIMIT = 120
"""Seconds; a hang is longer."""


class ForkedRun:
    def __init__(self, server: "ForkServer", processes: list[int], outputs: list[Path]):
        self.processes = processes
        self._server = server
        self._outputs = outputs

    def kill(self, number: int = signal.SIGKILL, *, ranks: tuple[int, ...] = (0, 1)) -> None:
        for rank in ranks:
            os.kill(self.processes[rank], number)

    def wait(self) -> list[int]:
        """Exit codes; minus the signal where one has ended a process."""
        return self._server.ask({"wait": self.processes})

    def said(self) -> str:
        return "".join(path.read_text() for path in self._outputs)


class ForkServer:
    """A context manager."""

    def __enter__(self) -> "ForkServer":
        root = Path(__file__).resolve().parents[1]
        env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=LIMIT)
        self._process.stdout.close()

    def ask(self, request: dict) -> list[int]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, folder: Path, arguments: list[str], *, processes: int = 2, **environment: str) -> ForkedRun:
        """`mdsc train` with these arguments.

        SLOW: seconds a step; NAN_AT, SPIKE_AT: steps at which process 1 has a bad cell; STOP_AT: after so many steps it
        gets a SIGTERM when it begins to validate; ROOM: free bytes of each process; OTHER_FOLDER: shards of process 1;
        STATISTICS_CELLS: most cells that the statistics at the start take.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outputs = [folder / f"said-{time.monotonic_ns()}-{rank}" for rank in range(processes)]
        if processes > 1:
            environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"ACCELERATE_USE_CPU": "true"}
        request = {"arguments": arguments, "environment": environment, "outputs": list(map(str, outputs))}
        return ForkedRun(self, self.ask(request), outputs)

    def finish(self, folder: Path, arguments: list[str], **options) -> str:
        """Run to a good end; what was said."""
        run = self.start(folder, arguments, **options)
        codes = run.wait()
        assert not any(codes), run.said()
        return run.said()


def _serve() -> None:
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch.distributed  # noqa: F401
    import tyro  # noqa: F401

    from mdsc.training import command  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in request["wait"]]
        else:
            answer = []
            for rank, output in enumerate(request["outputs"]):
                process = os.fork()
                if not process:
                    _become(rank, output, request)
                answer.append(process)
        print(json.dumps(answer), flush=True)


def _become(rank: int, output: str, request: dict) -> None:
    from mdsc.cli import main
    from mdsc.training import auto_batch, masked_run
    from mdsc.training.masked_task import MaskedTask
    from mdsc.training.trainer import Trainer

    os.environ |= request["environment"]
    if len(request["outputs"]) > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    file = os.open(output, os.O_CREAT | os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(file, standard)
    step, losses = Trainer.step, MaskedTask.losses

    def slow_step(self, *arguments):
        time.sleep(float(os.environ.get("SLOW", "0")))
        step(self, *arguments)

    def spoiled(self, model, step, cells):
        found = losses(self, model, step, cells)
        if rank == 1 and str(step) in os.environ.get("NAN_AT", "").split():
            found["loss"] = found["loss"] * float("nan") ** (cells.cell_index == cells.cell_index[1])
        if rank == 1 and str(step) in os.environ.get("SPIKE_AT", "").split():
            found["loss"] = found["loss"] * 1000.0 ** (cells.cell_index == cells.cell_index[1])
        return found

    validate = Trainer._validate

    def stopped(self, done):
        if rank == 1 and str(done) == os.environ.get("STOP_AT"):
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, done)

    Trainer.step, MaskedTask.losses, Trainer._validate = slow_step, spoiled, stopped
    if room := os.environ.get("ROOM"):
        auto_batch.available_bytes = lambda *_: int(room.split()[rank])
    if number := os.environ.get("STATISTICS_CELLS"):
        masked_run.shard_statistics = partial(masked_run.shard_statistics, max_cells=int(number))
    if rank == 1 and (folder := os.environ.get("OTHER_FOLDER")):
        request["arguments"] += ["--data.dir", folder]
    code = main(["train", *request["arguments"]])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
