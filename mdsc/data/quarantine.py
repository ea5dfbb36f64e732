"""What a run does with a corrupt row group of its training cells: stop, or put another one's cells in its place.

A substitute has the rows of what it replaces, so that the plan, the shapes of batches and the number of steps stay. It
is a pure function of (manifest, corrupt row group) and of which row groups are good: an order of all others is keyed by
the corrupt one's address, and the first good one of it is taken. No rank, worker or step enters, so that all processes
put the same cells there without a word to each other. A row group stays quarantined for the rest of the run, and of a
run that goes on with its record, even where the file was repaired: the tokens stay the same.

Row i is replaced by row i modulo the substitute's rows, or where that one is a validation cell by the next that is
none: validation cells would be trained on otherwise. The fold of a cell goes with it. Statistics and the validation
batch leave a quarantined row group out, as a cell that counts twice there tells nothing new. Held-out cells are never
substituted: what is scored is all there, or the evaluation stops.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from mdsc.data.folds import folds_of_rows
from mdsc.data.keyed_streams import Purpose, permutation, stream
from mdsc.data.row_groups import RowGroup, RowGroupRef
from mdsc.data.shards import CorruptRowGroup, ShardFolder
from mdsc.data.validation_split import address_hash, num_validation_rows, split_rows
from mdsc.errors import UserError

FILE_NAME = "quarantined.json"
MOST_CORRUPT = 0.1
"""Share of the row groups that a process has met. Beyond it the data is broken rather than scratched."""
FEWEST_MET = 10
MOST_TRIED = 32
"""Row groups that are tried as a substitute."""


@dataclass(frozen=True)
class Quarantined:
    """A corrupt row group, and the one whose cells stand in for its."""

    file: str
    group: int
    why: str
    substitute_file: str
    substitute_group: int

    def __str__(self) -> str:
        return (
            f"{self.file}, row group {self.group}, is quarantined: {self.why}; "
            f"{self.substitute_file}, row group {self.substitute_group}, stands in for it"
        )


@dataclass(frozen=True, eq=False)
class TrainingCells:
    """The cells that stand at a row group's addresses."""

    cells: RowGroup
    fold: Int64[np.ndarray, " rows"]
    """Of each row: which fit has seen this very cell (`mdsc.data.folds`)."""


class Quarantine:
    """Reads row groups of split "train" for a run, and remembers which were corrupt. One for each process.

    recorded: what an earlier part of the run has quarantined; these row groups stay so, read well or not.
    """

    def __init__(
        self,
        folder: ShardFolder,
        *,
        validation_fraction: float,
        on_corrupt: Literal["stop", "quarantine"] = "stop",
        recorded: Sequence[Quarantined] = (),
    ):
        self.folder = folder
        self.found = tuple(recorded)
        """All that is quarantined, in the order it was found, `recorded` first."""
        self._on_corrupt = on_corrupt
        self._validation_fraction = validation_fraction
        self._refs = {(ref.file, ref.group): ref for ref in folder.row_groups("train")}
        self._recorded = {(one.file, one.group) for one in recorded}
        self._substitutes = {(one.file, one.group): (one.substitute_file, one.substitute_group) for one in recorded}
        for pair in self._substitutes.items():
            for file, group in pair:
                if (file, group) not in self._refs:
                    raise UserError(
                        f"{FILE_NAME} names {file}, row group {group}, which {folder.path} does not have in split "
                        "train: it is of another folder of shards."
                    )
            if not self._may_stand_in(*(self._refs[place] for place in pair)):
                raise UserError(
                    f"{FILE_NAME} says that {pair[1][0]}, row group {pair[1][1]}, stands in for {pair[0][0]}, row "
                    f"group {pair[0][1]}, which it cannot: copy the checkpoint again."
                )
        self._met: set[tuple[str, int]] = set()

    def add(self, found: Sequence[Quarantined]) -> None:
        """Take over what a worker process has found."""
        for one in found:
            if one not in self.found:
                self._keep(one)

    def read(self, ref: RowGroupRef, columns: Sequence[str] | None = None) -> RowGroup | None:
        """The row group, without cell ids, or None where it is quarantined."""
        place = (ref.file, ref.group)
        if place in self._substitutes:
            return None
        self._met.add(place)
        group = None
        try:
            group = self.folder.read(ref, columns, with_cell_ids=False)
        except CorruptRowGroup as error:
            if self._on_corrupt == "stop":
                raise
            self._substitute(ref, error.why, columns)
        self._stop_if_too_many()
        return group

    def training_cells(self, ref: RowGroupRef, columns: Sequence[str] | None = None) -> TrainingCells:
        """The row group, or what stands in for it: as many rows, of which those of validation cells are not for use."""
        if (group := self.read(ref, columns)) is not None:
            return TrainingCells(group, folds_of_rows(ref))
        substitute = self._refs[self._substitutes[ref.file, ref.group]]
        try:
            group = self.folder.read(substitute, columns, with_cell_ids=False)
        except CorruptRowGroup as error:
            substitute = self._substitute(ref, f"its substitute is corrupt too ({error.why})", columns)
            group = self.folder.read(substitute, columns, with_cell_ids=False)
        rows = self._rows_for(ref, substitute)
        return TrainingCells(group.select(rows), folds_of_rows(substitute)[rows])

    def _rows_for(self, ref: RowGroupRef, substitute: RowGroupRef) -> Int64[np.ndarray, " rows"]:
        """Row of the substitute for each row; training cells all."""
        training = np.sort(split_rows(substitute, self._validation_fraction)[0])
        place = np.searchsorted(training, np.arange(ref.rows) % substitute.rows)
        return training[place % len(training)]

    def _substitute(self, ref: RowGroupRef, why: str, columns: Sequence[str] | None) -> RowGroupRef:
        """Quarantine a row group; what stands in for it has good `columns`."""
        substitute = self._first_good(ref, why, columns)
        self._keep(Quarantined(ref.file, ref.group, why, substitute.file, substitute.group))
        return substitute

    def _keep(self, one: Quarantined) -> None:
        place = (one.file, one.group)
        self._substitutes[place] = (one.substitute_file, one.substitute_group)
        # A new tuple: another thread may be reading the old one.
        self.found = (*(other for other in self.found if (other.file, other.group) != place), one)

    def _first_good(self, ref: RowGroupRef, why: str, columns: Sequence[str] | None) -> RowGroupRef:
        tried = 0
        for candidate in self._candidates(ref):
            if tried == MOST_TRIED:
                break
            tried += 1
            try:
                self.folder.read(candidate, columns, with_cell_ids=False)
            except CorruptRowGroup:
                continue
            return candidate
        where = f"{self.folder.location(ref.file)}, row group {ref.group}"
        raise UserError(
            f"{where} is corrupt ({why}), and none of {tried} other row groups is good enough to stand in for it: "
            "run `mdsc verify` on the shards."
        )

    def _candidates(self, ref: RowGroupRef) -> Iterator[RowGroupRef]:
        """The other row groups that hold training cells and are not on record, in an order that `ref` alone decides."""
        refs = list(self._refs.values())
        key, _ = address_hash(ref)
        for number in permutation(stream(Purpose.SUBSTITUTE, key), len(refs)).tolist():
            other = refs[number]
            # What this process alone has found must not matter: others have not met it.
            if (other.file, other.group) not in self._recorded and self._may_stand_in(ref, other):
                yield other

    def _may_stand_in(self, ref: RowGroupRef, other: RowGroupRef) -> bool:
        # Another data set of a mixture was measured for other genes.
        is_alike = other != ref and self.folder.portion_of(other) == self.folder.portion_of(ref)
        return is_alike and num_validation_rows(other, self._validation_fraction) < other.rows

    def _stop_if_too_many(self) -> None:
        number, met = len(self._substitutes) - len(self._recorded), len(self._met)
        if met >= FEWEST_MET and number > MOST_CORRUPT * met:
            last = self.found[-1]
            raise UserError(
                f"{number} of the {met} row groups that were read so far are corrupt, the last one "
                f"{self.folder.location(last.file)}, row group {last.group} ({last.why}).\nThat is too many for "
                "--data.on-corrupt quarantine: run `mdsc verify` on the shards, and copy or prepare them again."
            )


def to_json(quarantined: Sequence[Quarantined]) -> str:
    """The record as text, in the order of the addresses: the same whichever process has found what first."""
    ordered = sorted(quarantined, key=lambda one: (one.file, one.group))
    return json.dumps([asdict(one) for one in ordered], indent=1) + "\n"


def from_json(text: str | bytes, source: str) -> tuple[Quarantined, ...]:
    """The record out of such text; `UserError` where it is damaged."""
    try:
        found = tuple(Quarantined(**one) for one in json.loads(text))
        for one in found:
            texts, numbers = (one.file, one.why, one.substitute_file), (one.group, one.substitute_group)
            if not all(isinstance(value, str) for value in texts) or not all(type(value) is int for value in numbers):
                raise TypeError(f"a value of {asdict(one)} is of a wrong type")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{source} is no record of quarantined row groups ({error}): copy the checkpoint again"
        ) from error
    return found
