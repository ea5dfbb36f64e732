"""What files call perturbations, read as `mdsc.data.perturbations` writes them: GENE+ctrl, guides, pairs, controls.

SPI1+ctrl, ctrl+SPI1        GEARS
SPI1_pDS255                 a guide's name: gene and plasmid (Adamson et al. 2016, GSE90546)
CEBPE_RUNX1T1               a pair as scPerturb joins it (--joined-by _)
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mdsc.data.condition_levels import near_names
from mdsc.data.perturbations import CONTROL, canonical
from mdsc.errors import UserError

CONTROL_LABELS = ("ctrl", "control", "non-targeting", "NT", "unperturbed")
"""What control cells are called where nothing is said."""
GUIDE = re.compile(r"(?P<target>.+)_p[A-Z]{2}\d+(-\d+)?")
CONTROL_GUIDES = re.compile(r"(62|63|Gal4-4)\(mod\)|3x_neg_ctrl")
"""Guides of GSE90546 that cut nothing."""
NO_GUIDE = "*"
"""GSE90546's identity of cells that no guide was told for."""


@dataclass(frozen=True)
class NameRule:
    """How the labels of one file are read."""

    control_labels: tuple[str, ...]
    joined_by: str | None = None
    """What stands between the genes of a pair, beside "+"."""
    are_guides: bool = False
    """Labels are names of guides, of which the plasmid is cut off."""

    @classmethod
    def of(cls, labels: Iterable[str], control_labels: Sequence[str], joined_by: str | None, source: str) -> "NameRule":
        """The rule for a file that has these labels; UserError where no label is that of controls."""
        labels = list(labels)
        guides = [label for label in labels if GUIDE.fullmatch(label)]
        are_guides = 2 * len(guides) > len(labels)
        if control_labels:
            for label in control_labels:
                if label not in labels:
                    near = near_names(label, labels, "it has")
                    raise UserError(f"{source} has no cells of --control-label {label!r}: {near}.")
            return cls(tuple(control_labels), joined_by, are_guides)
        usual = [label for label in CONTROL_LABELS if label in labels]
        if are_guides:
            usual += [label for label in labels if _is_control_guide(label) or label == NO_GUIDE]
        if not usual:
            raise UserError(
                f"{source} has no control cells, of which none is called {', '.join(CONTROL_LABELS)}: name theirs by "
                f"--control-label; {near_names('control', labels, 'it has')}."
            )
        return cls(tuple(usual), joined_by, are_guides)

    def original(self, label: str) -> str:
        """The perturbation with its genes in the file's order, joined by "+"."""
        if label in self.control_labels:
            return CONTROL
        if self.are_guides and (guide := GUIDE.fullmatch(label)):
            label = guide["target"].removesuffix("_only")
        return label.replace(self.joined_by, "+") if self.joined_by else label

    def canonical(self, label: str) -> str:
        return canonical(self.original(label))


def _is_control_guide(label: str) -> bool:
    guide = GUIDE.fullmatch(label)
    return guide is not None and CONTROL_GUIDES.fullmatch(guide["target"]) is not None


def counted(names: Iterable[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def cells_of(labels: np.ndarray) -> dict[str, int]:
    """How many cells each perturbation has, in alphabetical order."""
    names, numbers = np.unique(labels.astype(str), return_counts=True)
    return dict(zip(names.tolist(), numbers.tolist(), strict=True))
