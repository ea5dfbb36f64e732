"""The command `mdsc`: finds the sub-command, imports it only then, and turns user errors into messages.

Every sub-command is a function ``main(argv: list[str]) -> None`` in the package that does the work. train.py, sample.py
and evaluate.py call the same functions through `exit_with`.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mdsc import __version__
from mdsc.atomic import as_given
from mdsc.errors import UserError


@dataclass(frozen=True)
class Command:
    """The module whose `main` runs, and what it does in one line. Importing is left until it is called."""

    module: str
    summary: str


COMMANDS = {
    "prepare h5ad": Command("mdsc.prep.h5ad", "turn AnnData files into a folder of shards"),
    "prepare tahoe": Command("mdsc.prep.tahoe", "make shards of Tahoe-100M's files, read where and as they are"),
    "prepare demo": Command("mdsc.prep.demo", "make shards of 700 real blood cells that come with scanpy"),
    "prepare mixture": Command("mdsc.prep.mixture", "train on several folders of shards at once, with weights"),
    "prepare simulate": Command("mdsc.prep.simulate", "make shards of simulated cells of any number"),
    "prepare features": Command("mdsc.prep.features", "make features of drugs or genes, for levels without cells"),
    "prepare perturbation": Command("mdsc.prep.perturbation", "make a perturbation task of Perturb-seq cells"),
    "prepare gene-embeddings": Command("mdsc.prep.gene_embeddings", "make vectors of genes from GenePT, GO or others"),
    "prepare simulate-perturbations": Command(
        "mdsc.prep.simulated_perturbations", "make a Perturb-seq file whose effects are known"
    ),
    "shards-to-h5ad": Command("mdsc.prep.shards_to_h5ad", "take cells out of a folder of shards, as an AnnData file"),
    "validate": Command("mdsc.prep.validate", "say whether an AnnData file is usable, and how to mend it"),
    "verify": Command("mdsc.prep.verify", "check every byte of a folder of shards, and list all faults"),
    "train": Command("mdsc.training.command", "train a model on a folder of shards"),
    "sample": Command("mdsc.sampling.command", "fill hidden counts, or generate cells"),
    "evaluate": Command("mdsc.evaluation.command", "score a model beside plain baselines"),
    "likelihood": Command("mdsc.sampling.likelihood_command", "score cells, or some genes given others, in nats"),
    "embed": Command("mdsc.sampling.embedding_command", "embed cells and genes"),
    "push": Command("mdsc.publish.command", "push a checkpoint to a hub, with a filled model card"),
    "doctor": Command("mdsc.model.doctor", "show versions, devices and which attention works here"),
}

NO_READER = 141
"""Exit code of who writes to a closed pipe: 128 + SIGPIPE, as shells count."""


def run() -> NoReturn:
    """Run the installed command."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mdsc` with these arguments (sys.argv's where None) and give the exit code: 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _exit_code(lambda: _dispatch(arguments))


def exit_with(command: Callable[[], None]) -> NoReturn:
    """Run `command` and end the program: exit code 0, or 2 after a mistake, which is printed without a traceback."""
    sys.exit(_exit_code(command))


def _exit_code(command: Callable[[], None]) -> int:
    code = _outcome(command)
    return _outcome(sys.stdout.flush) or code


def _outcome(command: Callable[[], None]) -> int:
    try:
        command()
    except UserError as error:
        return _told(str(error))
    except BrokenPipeError as error:
        return _told(_what_failed(error)) if _is_read() else NO_READER
    except OSError as error:  # a place that cannot be read or written: no right, no room, no such folder
        return _told(_what_failed(error))
    except KeyboardInterrupt as stop:
        print("; ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr)
        return 130
    except SystemExit as stop:  # tyro's --help and its messages
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _is_read() -> bool:
    """Write to stdout, and tell whether anybody reads there: `mdsc --help | head` is no mistake."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        return False
    return True


def _told(message: str) -> int:
    # Several processes of one run may say so; each says who it is.
    rank = int(os.environ.get("RANK", "0"))
    print(f"error{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr)
    return 2


def _what_failed(error: OSError) -> str:
    reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "this is a file, and no folder"
    path = f"{error.filename}: " if error.filename is not None else ""
    return as_given(f"{path}{reason}")


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(COMMANDS))
        return
    if arguments[0] == "--version":
        print(f"mdsc {__version__}")
        return
    group = {name: command for name, command in COMMANDS.items() if name.split()[0] == arguments[0]}
    if not group:
        near = difflib.get_close_matches(arguments[0], {name.split()[0] for name in COMMANDS}, n=1)
        hint = f"perhaps you meant `mdsc {near[0]}`" if near else "`mdsc --help` lists the commands"
        raise UserError(f"there is no command `mdsc {arguments[0]}`; {hint}.")
    name = " ".join(arguments[: len(next(iter(group)).split())])
    if name not in group:
        if len(arguments) == 1 or arguments[1] in ("-h", "--help"):
            print(_help(group))
            return
        near = difflib.get_close_matches(arguments[1], [known.split()[1] for known in group], n=1)
        hint = f"perhaps you meant `mdsc {arguments[0]} {near[0]}`" if near else f"there are: {', '.join(group)}"
        raise UserError(f"there is no command `mdsc {name}`; {hint}.")
    # The sub-command's own --help shows how it was called.
    sys.argv[0] = f"mdsc {name}"
    importlib.import_module(group[name].module).main(arguments[len(name.split()) :])


def _help(commands: dict[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [f"  mdsc {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            f"mdsc {__version__}: masked discrete diffusion for single-cell counts.",
            "",
            *lines,
            "",
            "`mdsc COMMAND --help` lists every option with its default.",
        ]
    )
