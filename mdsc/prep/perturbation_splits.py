"""Which perturbations are for training, validation and test: GEARS' simulation split, folds, held-out genes, a file.

GEARS (Roohani, Huang & Leskovec 2024, Nature Biotechnology 42) splits *genes*: .75 of them are known, and a tenth of
the known ones are for validation. Written here from its rule; the splits that were published with it lie in splits/.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from mdsc.data.condition_levels import near_names
from mdsc.data.perturbations import CONTROL, canonical, perturbed_genes
from mdsc.errors import UserError

SPLITS = ("train", "val", "test")
PUBLISHED = ("adamson-81", "adamson-86")
KINDS = ("gears-simulation", *PUBLISHED, "leave-out", "folds", "leave-one-out", "cell-type")


@dataclass(frozen=True)
class PerturbationSplit:
    """A split for each perturbation; those that have none are left out."""

    split_of: Mapping[str, str]
    """Canonical name -> train, val or test; without the control."""
    about: str
    """What it is, in words."""
    notes: tuple[str, ...] = ()
    """What is to be told of it."""


def gears_simulation(conditions: Sequence[str], seed: int) -> dict[str, str]:
    """GEARS' split "simulation" of perturbations as the file writes them (SPI1+ctrl, or a pair in the file's order).

    Genes are drawn from numpy's legacy stream at `seed`, .75 of them for training and of these .9, as GEARS does: the
    same genes in the same splits. A pair of two known genes is for training in .75 (then .9) of cases; a pair with an
    unknown gene is for test.
    """
    known, test = _known_and_unknown(conditions, seed, 0.75)
    train, val = _known_and_unknown(known, seed, 0.9)
    splits = {"train": train, "val": val, "test": test}
    return {canonical(name): split for split, names in splits.items() for name in names}


def _known_and_unknown(conditions: Sequence[str], seed: int, share: float) -> tuple[list[str], list[str]]:
    genes_of = {name: perturbed_genes(name) for name in conditions}
    genes = sorted({gene for own in genes_of.values() for gene in own})
    known = _drawn(genes, seed, share)
    known_pairs = sorted(name for name, own in genes_of.items() if len(own) > 1 and known.issuperset(own))
    pairs = _drawn(known_pairs, seed, share)
    kept = [name for name, own in genes_of.items() if name in pairs or (len(own) == 1 and own[0] in known)]
    return kept, [name for name in genes_of if name not in set(kept)]


def _drawn(names: Sequence[str], seed: int, share: float) -> set[str]:
    size = int(len(names) * share)
    return set(np.random.RandomState(seed).choice(names, size, replace=False).tolist()) if size else set()


def published(name: str, seed: int) -> PerturbationSplit:
    """A split that lies in splits/: "adamson-86" or "adamson-81", at seeds 1 to 5."""
    stored = json.loads((files("mdsc.prep") / "splits" / f"{name.replace('-', '_')}.json").read_text(encoding="utf-8"))
    if str(seed) not in stored["seeds"]:
        raise UserError(f"--split {name} is there for --split-seed {', '.join(stored['seeds'])}, not for {seed}.")
    split_of = {gene: split for split in SPLITS for gene in stored["seeds"][str(seed)][split]}
    return PerturbationSplit(split_of, f"{name}, seed {seed}", tuple(stored["notes"]))


def leave_out(conditions: Sequence[str], genes: Sequence[str], val_fraction: float, seed: int) -> dict[str, str]:
    """Every perturbation of one of these genes, alone or in a pair, is for test; of the others some for validation."""
    held_out = set(genes)
    others = sorted({gene for name in conditions for gene in perturbed_genes(name)} - held_out)
    for_validation = _drawn(others, seed, val_fraction)

    def split(name: str) -> str:
        own = set(perturbed_genes(name))
        return "test" if own & held_out else "val" if own & for_validation else "train"

    return {canonical(name): split(name) for name in conditions}


def fold_genes(conditions: Sequence[str], num_folds: int, fold: int, seed: int) -> list[str]:
    """The genes of one of `num_folds` parts of all genes, in a random order that `seed` gives."""
    genes = sorted({gene for name in conditions for gene in perturbed_genes(name)})
    if not 2 <= num_folds <= len(genes):
        raise UserError(f"--num-folds {num_folds}: there are {len(genes)} perturbed genes; give 2 to {len(genes)}.")
    if not 0 <= fold < num_folds:
        raise UserError(f"--fold {fold}: there are folds 0 to {num_folds - 1}.")
    return sorted(np.random.default_rng(seed).permutation(genes)[fold::num_folds].tolist())


def split_of_file(path: Path) -> dict[str, str]:
    """{"train": [...], "val": [...], "test": [...]} of a JSON file, with names as they are written in any file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        listed = {split: [canonical(str(name)) for name in stored.get(split, [])] for split in SPLITS}
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path} (--split-file).") from error
    except (ValueError, AttributeError, TypeError) as error:
        form = '{"train": ["SPI1", ...], "val": [...], "test": [...]}'
        raise UserError(f"--split-file {path} is not of the form {form}.") from error
    if unknown := [name for name in stored if name not in SPLITS]:
        raise UserError(f"--split-file {path} has {unknown[0]!r}: the splits are called train, val and test.")
    split_of: dict[str, str] = {}
    for split, names in listed.items():
        for name in names:
            if name != CONTROL and split_of.setdefault(name, split) != split:
                raise UserError(f"--split-file {path} has {name} in {split_of[name]} and in {split}: keep one.")
    return split_of


def split_by_rule(
    rule: Sequence[str],
    conditions: Sequence[str],
    *,
    seed: int = 1,
    num_folds: int = 5,
    fold: int = 0,
    val_fraction: float = 0.1,
) -> PerturbationSplit:
    """What `--split RULE...` says of perturbations as the file writes them (SPI1+ctrl, pairs in the file's order)."""
    kind, *values = rule or ("",)
    if kind not in KINDS:
        raise UserError(f"--split {kind}: there are {', '.join(KINDS)}.")
    if values and kind != "leave-out":
        raise UserError(f"--split {kind} takes no {values[0]!r}: only leave-out is followed by names.")
    if kind in PUBLISHED:
        return published(kind, seed)
    if kind == "gears-simulation":
        return PerturbationSplit(gears_simulation(conditions, seed), f"gears-simulation, seed {seed}")
    genes = sorted({gene for name in conditions for gene in perturbed_genes(name)})
    if kind == "cell-type":
        return PerturbationSplit({canonical(name): "train" for name in conditions}, kind)
    if kind == "leave-out":
        held_out = _known_genes(values, genes)
        about = f"leave-out {' '.join(held_out)}"
    else:
        num_folds = len(genes) if kind == "leave-one-out" else num_folds
        held_out = genes[fold : fold + 1] if kind == "leave-one-out" else fold_genes(conditions, num_folds, fold, seed)
        if not 0 <= fold < num_folds:
            raise UserError(f"--fold {fold}: there are {len(genes)} perturbed genes, folds 0 to {num_folds - 1}.")
        about = f"{kind}, fold {fold} of {num_folds}, seed {seed}"
    return PerturbationSplit(leave_out(conditions, held_out, val_fraction, seed), about)


def _known_genes(given: Sequence[str], genes: Sequence[str]) -> list[str]:
    if not given:
        raise UserError("--split leave-out needs genes: --split leave-out SPI1 BHLHE40.")
    found: dict[str, None] = {}
    for name in given:
        for gene in perturbed_genes(canonical(name)):
            if gene not in genes:
                raise UserError(f"--split leave-out {gene}: no cell has it; {near_names(gene, genes, 'there are')}.")
            found[gene] = None
    return list(found)


def check_parts(cells: Mapping[str, int], about: str, say: Callable[[str], None]) -> None:
    """Refuse a task without perturbed cells to train on or to test; tell of one without any for validation."""
    for split in ("train", "test"):
        if not cells.get(split):
            raise UserError(
                f"the split ({about}) leaves no perturbed cells for {split}: choose another (--split, --split-file)."
            )
    if not cells.get("val"):
        say("no perturbation is for validation: there are too few of them, or the split names none")
