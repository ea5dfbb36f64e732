"""Which cells of the train split are kept for validation: a pure function of a cell's address.

An address is (shard file, row group, row). Each row group gives up its share of rows, the ones that a hash ranks
lowest; a share that is no whole number is rounded up or down by the hash too. So the plan knows from the manifest alone
how many training cells each row group holds, at 100M cells too, and which rows these are without reading it. Neither
the seed of a run nor its number of processes changes the split; preparing the shards anew in another order does.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from jaxtyping import Int64

from mdsc.data.keyed_streams import Purpose, permutation, stream
from mdsc.data.row_groups import RowGroupRef


def num_validation_rows(ref: RowGroupRef, fraction: float) -> int:
    """How many rows of this row group are validation cells: rows * fraction, rounded by chance."""
    assert 0 <= fraction < 1
    share = ref.rows * fraction
    whole = int(share)
    _, luck = address_hash(ref)
    return whole + (luck < share - whole)


def split_rows(ref: RowGroupRef, fraction: float) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " valid"]]:
    """Rows of this row group that are trained on, and rows that are kept for validation; each in hashed order."""
    key, _ = address_hash(ref)
    order = permutation(stream(Purpose.VALIDATION_ROWS, key), ref.rows)
    num_validation = num_validation_rows(ref, fraction)
    return order[num_validation:], order[:num_validation]


def some_validation_rows(
    refs: Sequence[RowGroupRef], fraction: float, num_cells: int, *, spread: int = 64
) -> dict[RowGroupRef, Int64[np.ndarray, " rows"]]:
    """`num_cells` validation cells (all, where there are fewer), always the same ones, as rows of row groups.

    They are shared evenly by `spread` row groups, or by more where these hold too few: enough to meet every plate of
    an atlas, few enough to read at the start of a run.
    """
    refs = [refs[place] for place in permutation(stream(Purpose.VALIDATION_BATCH, 0), len(refs))]
    held = np.array([num_validation_rows(ref, fraction) for ref in refs])
    enough = max(spread, int(np.searchsorted(np.cumsum(held), num_cells)) + 1)
    refs, held = refs[:enough], held[:enough]
    owner = np.repeat(np.arange(len(refs)), held)
    turn = np.concatenate([np.arange(number) for number in held])
    taken = np.bincount(owner[np.argsort(turn, kind="stable")[:num_cells]], minlength=len(refs))
    return {ref: split_rows(ref, fraction)[1][:number] for ref, number in zip(refs, taken, strict=True) if number}


def address_hash(ref: RowGroupRef) -> tuple[int, float]:
    """A 64-bit key and a uniform number in [0, 1) of a row group."""
    digest = blake2b(f"{ref.file}\n{ref.group}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") / 2**64
