"""`mdsc evaluate`, `python evaluate.py`: finds the kind of evaluation that was asked for, and imports it only then."""

import difflib
import importlib
from collections.abc import Sequence

from mdsc.errors import UserError

KINDS = {
    "inpaint": ("mdsc.evaluation.inpaint_command", "score the filling in of hidden counts beside plain baselines"),
    "generate": ("mdsc.evaluation.generation_command", "score generated cells beside real ones and plain baselines"),
    "embed": ("mdsc.evaluation.embedding_command", "score an embedding of cells by labels, beside PCA of the counts"),
    "perturb": ("mdsc.evaluation.perturb_command", "score predicted perturbed cells beside real ones and baselines"),
}
"""Name -> the module whose `main` runs, and what it does in one line."""


def main(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, KINDS))
        lines = [f"mdsc evaluate {name:<{width}}  {summary}" for name, (_, summary) in KINDS.items()]
        print("\n".join([*lines, "", "`mdsc evaluate KIND --help` lists every option with its default."]))
        return
    kind, *flags = argv
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"perhaps you meant `evaluate {near[0]}`" if near else f"there is {_listed()}"
        raise UserError(f"there is no `evaluate {kind}`; {hint}.")
    importlib.import_module(KINDS[kind][0]).main(flags)


def _listed() -> str:
    return ", ".join(f"`evaluate {name}`" for name in KINDS)
