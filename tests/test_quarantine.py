"""Corrupt row groups of a run: it stops, or goes on with the same substitutes on any number of processes."""

import json
import pickle
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from simulated_shards import simulated_counts, write_shards

from mdsc.config.schema import DataConfig
from mdsc.data.folds import folds_of_rows
from mdsc.data.loader import CellLoader
from mdsc.data.quarantine import Quarantine, Quarantined, from_json, to_json
from mdsc.data.shard_statistics import shard_statistics
from mdsc.data.shards import CorruptRowGroup, ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.data.validation_split import split_rows
from mdsc.errors import UserError
from mdsc.evaluation.cell_sources import read_shards

NUM_CELLS, NUM_GENES, PER_FILE = 630, 50, 45
SETTINGS = DataConfig(num_genes=NUM_GENES, num_lanes=4, window=2, validation_fraction=0.2, on_corrupt="quarantine")


@pytest.fixture
def folder(tmp_path) -> ShardFolder:
    """14 files of one row group each; the count of gene 0 is the cell's own number."""
    from scipy.sparse import csr_matrix

    counts = simulated_counts(NUM_CELLS, NUM_GENES).toarray()
    counts[:, 0] = 1 + np.arange(NUM_CELLS)
    return write_shards(tmp_path / "s", csr_matrix(counts), cells_per_shard=PER_FILE)


def flip(folder: ShardFolder, number: int) -> bytes:
    """Flip a bit of a file; give what it was."""
    path = folder.location(folder.manifest.shards[number].file)
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 4]) + whole[61:])
    return whole


def make_loader(folder, settings=SETTINGS, **options) -> CellLoader:
    return CellLoader(folder, make_tokenizer("rank"), settings, **({"seed": 0, "global_batch_size": 32} | options))


def take(loader, number, start=0):
    batches = loader.iterate(start)
    taken = list(islice(batches, number))
    batches.close()
    return taken


def tokens(shares) -> torch.Tensor:
    """Tokens and folds of global batches, out of the shares of all ranks."""
    index = torch.cat([batch.cell_index for batch in shares])
    both = torch.cat([torch.cat([batch.tokens, batch.counts, batch.fold[:, None]], dim=1) for batch in shares])
    return both[index.argsort()]


def cell_numbers(batch) -> list[int]:
    place = (batch.gene_ids == 0).int().argmax(dim=1, keepdim=True)
    return (batch.counts.gather(1, place)[:, 0] - 1).tolist()


def rows_of(cells) -> set[tuple[int, ...]]:
    return {tuple(part.tolist()) for part in np.split(cells.counts, cells.indptr[1:-1])}


def test_by_default_the_run_stops(folder):
    flip(folder, 3)
    loader = make_loader(folder, replace(SETTINGS, on_corrupt="stop"))
    with pytest.raises(CorruptRowGroup, match=r"train-00003\.parquet, row group 0: its bytes are not") as told:
        take(loader, 2 * loader.steps_per_epoch)
    again = pickle.loads(pickle.dumps(told.value))  # as processes hand it on
    assert (str(again), again.why) == (str(told.value), told.value.why)
    assert isinstance(again, CorruptRowGroup)


@pytest.mark.parametrize("draw", ["detection", "expressed"])
def test_tokens_are_the_same_for_any_number_of_processes(folder, draw):
    flip(folder, 3)
    settings = replace(SETTINGS, gene_draw=draw, num_genes=20)
    alone = make_loader(folder, settings)
    steps = 2 * alone.steps_per_epoch + 3
    batches = take(alone, steps)
    assert {len(batch) for batch in batches} == {32}
    for world_size in (2, 4):
        loaders = [make_loader(folder, settings, rank=rank, world_size=world_size) for rank in range(world_size)]
        shares = [take(loader, steps) for loader in loaders]
        for step in range(steps):
            assert torch.equal(tokens([share[step] for share in shares]), tokens([batches[step]])), step
        found = {one for loader in loaders for one in loader.quarantined()}
        assert found == set(alone.quarantined())


def test_worker_processes_quarantine_the_same_and_report_it(folder):
    flip(folder, 3)
    alone, with_workers = make_loader(folder), make_loader(folder, replace(SETTINGS, workers=2))
    number = alone.steps_per_epoch
    assert torch.equal(tokens(take(alone, number)), tokens(take(with_workers, number)))
    assert {one.file for one in with_workers.quarantined()} == {"train-00003.parquet"}
    assert set(with_workers.quarantined()) == set(alone.quarantined())


def test_the_plan_stays_and_the_substitute_has_its_row_modulo(folder):
    whole = make_loader(folder)
    before = [cell_numbers(batch) for batch in take(whole, whole.steps_per_epoch)]
    flip(folder, 3)
    loader = make_loader(folder)
    after = [cell_numbers(batch) for batch in take(loader, whole.steps_per_epoch)]
    assert loader.steps_per_epoch == whole.steps_per_epoch
    (one,) = loader.quarantined()
    assert (one.file, one.group) == ("train-00003.parquet", 0)
    assert "hash differs" in one.why
    first = PER_FILE * int(one.substitute_file[6:11])
    substitute = next(ref for ref in folder.row_groups() if ref.file == one.substitute_file)
    training, validation = (set(rows.tolist()) for rows in split_rows(substitute, 0.2))
    for old, new in zip(np.ravel(before).tolist(), np.ravel(after).tolist(), strict=True):
        if old // PER_FILE != 3:
            assert new == old
            continue
        row = old % PER_FILE
        expected = next((row + ahead) % PER_FILE for ahead in range(PER_FILE) if (row + ahead) % PER_FILE in training)
        assert new == first + expected
        assert new - first not in validation, "a validation cell would be trained on"


def test_the_fold_is_that_of_the_cell_that_stands_in(folder):
    flip(folder, 3)
    source = Quarantine(folder, validation_fraction=0.2, on_corrupt="quarantine")
    refs = folder.row_groups()
    training = source.training_cells(refs[3])
    (one,) = source.found
    folds = folds_of_rows(next(ref for ref in refs if ref.file == one.substitute_file))
    first = PER_FILE * int(one.substitute_file[6:11])
    rows = training.cells.counts[training.cells.indptr[:-1]] - 1 - first  # of gene 0
    assert training.fold.tolist() == folds[rows].tolist()


def test_substitutes_of_other_sizes_and_corrupt_candidates(folder, tmp_path):
    """A row group of 300 rows after one of 1,000; and candidates that are corrupt too are passed over."""
    uneven = write_shards(tmp_path / "u", simulated_counts(1300, 20))
    small, large = (ref.rows for ref in uneven.row_groups()[::-1])
    path = uneven.location("train-00000.parquet")
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    source = Quarantine(uneven, validation_fraction=0.1, on_corrupt="quarantine")
    cells = source.training_cells(uneven.row_groups()[0]).cells
    assert (large, small, len(cells.indptr) - 1) == (1000, 300, 1000)
    assert rows_of(cells) <= rows_of(uneven.read(uneven.row_groups()[1]))

    flip(folder, 3)
    chosen = Quarantine(folder, validation_fraction=0.1, on_corrupt="quarantine")
    assert chosen.read(folder.row_groups()[3]) is None
    first = chosen.found[0].substitute_file
    flip(folder, int(first[6:11]))
    again = Quarantine(folder, validation_fraction=0.1, on_corrupt="quarantine")
    assert again.read(folder.row_groups()[3]) is None
    assert again.found[0].substitute_file not in (first, "train-00003.parquet")
    # Where the substitute goes bad later in a run, the next one takes its place.
    assert chosen.training_cells(folder.row_groups()[3]).cells is not None
    assert [one.substitute_file for one in chosen.found] == [again.found[0].substitute_file]


@pytest.mark.parametrize("repaired", [False, True])
def test_a_run_goes_on_with_what_was_recorded(folder, repaired: bool):
    whole = flip(folder, 3)
    loader = make_loader(folder)
    steps = 2 * loader.steps_per_epoch
    expected = take(loader, steps)
    recorded = from_json(to_json(loader.quarantined()), "record")
    assert recorded == loader.quarantined()
    if repaired:
        folder.location("train-00003.parquet").write_bytes(whole)
    resumed = make_loader(folder, quarantined=recorded, seed=0)
    for batch, other in zip(take(resumed, 9, start=steps - 9), expected[-9:], strict=True):
        assert torch.equal(batch.tokens, other.tokens)
    assert resumed.quarantined() == recorded
    if repaired:
        forgetful = take(make_loader(folder), steps)
        assert any(not torch.equal(one.tokens, other.tokens) for one, other in zip(forgetful, expected, strict=True))


def test_more_than_a_tenth_is_too_much(folder):
    flip(folder, 3)
    take(make_loader(folder), 40)  # one of 14
    flip(folder, 8)
    with pytest.raises(UserError, match=r"(?s)2 of the 1\d row groups .* too many .*mdsc verify") as told:
        take(make_loader(folder), 40)
    assert not isinstance(told.value, CorruptRowGroup)
    assert "row group 0" in str(told.value)


def test_nothing_good_to_stand_in_ends_the_run(tmp_path):
    folder = write_shards(tmp_path / "s", simulated_counts(100, 20), cells_per_shard=50)
    flip(folder, 0), flip(folder, 1)
    with pytest.raises(UserError, match=r"train-0000\d\.parquet, row group 0 is corrupt .* none of 1 other"):
        take(make_loader(folder), 2)


def test_a_truncated_file_is_one_of_corrupt_row_groups_and_a_missing_one_is_not(folder):
    path = folder.location("train-00003.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is truncated"):
        ShardFolder.open(folder.path)
    loader = make_loader(ShardFolder.open(folder.path, check_sizes=False))
    take(loader, 30)
    assert [(one.file, one.group) for one in loader.quarantined()] == [("train-00003.parquet", 0)]
    assert "truncated" in loader.quarantined()[0].why
    path.unlink()
    with pytest.raises(UserError, match=r"train-00003.parquet, row group 0 cannot be read: .*No such file") as told:
        take(make_loader(folder), 30)
    assert not isinstance(told.value, CorruptRowGroup)
    with pytest.raises(UserError, match="is missing"):
        ShardFolder.open(folder.path, check_sizes=False)


def test_statistics_and_validation_leave_it_out(folder):
    settings = {"rank": 2, "validation_fraction": 0.2, "cross_fit": False}
    all_cells = shard_statistics(folder, make_tokenizer("rank"), **settings).num_cells
    flip(folder, 3)
    with pytest.raises(CorruptRowGroup, match="train-00003"):
        shard_statistics(folder, make_tokenizer("rank"), **settings)
    loader = make_loader(folder)
    statistics = shard_statistics(folder, make_tokenizer("rank"), **settings, quarantine=loader.quarantine)
    lost = folder.row_groups()[3]
    assert statistics.num_cells == all_cells - len(split_rows(lost, 0.2)[0])
    validation = cell_numbers(loader.validation_batch(NUM_CELLS))
    assert len(validation) == sum(len(split_rows(ref, 0.2)[1]) for ref in folder.row_groups() if ref != lost)
    assert 3 not in {number // PER_FILE for number in validation}
    trained = {number for batch in take(loader, 2 * loader.steps_per_epoch) for number in cell_numbers(batch)}
    assert not trained & set(validation)
    assert len(loader.quarantined()) == 1


def test_a_record_of_other_shards_and_a_damaged_one_are_told(folder):
    stranger = Quarantined("x.parquet", 0, "why", "train-00000.parquet", 0)
    with pytest.raises(UserError, match=r"x\.parquet, row group 0, which .* does not have"):
        make_loader(folder, quarantined=[stranger])
    for text in ("", "{}x", "[1]", '[{"file": "a"}]', "null", json.dumps([vars(stranger) | {"group": "0"}])):
        with pytest.raises(UserError, match=r"f/quarantined\.json is no record"):
            from_json(text, "f/quarantined.json")


def test_a_record_of_what_cannot_stand_in_is_told(folder):
    itself = Quarantined("train-00001.parquet", 0, "why", "train-00001.parquet", 0)
    with pytest.raises(UserError, match=r"quarantined\.json says that train-00001\.parquet, row group 0, stands in"):
        make_loader(folder, quarantined=[itself])


def test_a_substitute_is_good_in_all_columns_that_are_read(folder, monkeypatch):
    """Damage of one column alone is met in files without hashes only."""
    read = ShardFolder.read
    flip(folder, 3)
    lost = folder.row_groups()[3]
    first = Quarantine(folder, validation_fraction=0.2, on_corrupt="quarantine")
    first.training_cells(lost, ("drug",))
    bad = first.found[0].substitute_file

    def fails(self, ref, columns=None, **options):
        if ref.file == bad and columns:
            raise CorruptRowGroup(bad, "column drug has text that is not UTF-8")
        return read(self, ref, columns, **options)

    monkeypatch.setattr(ShardFolder, "read", fails)
    found = []
    for columns in ((), ("drug",)):  # statistics may have met it before the loader does, or not
        source = Quarantine(folder, validation_fraction=0.2, on_corrupt="quarantine")
        source.read(lost, columns)
        source.training_cells(lost, ("drug",))
        found.append(source.found[0].substitute_file)
    assert found[0] == found[1] not in (bad, lost.file)


def test_cells_that_are_scored_are_never_replaced(folder):
    flip(folder, 3)
    with pytest.raises(CorruptRowGroup, match=r"train-00003\.parquet, row group 0"):
        read_shards(folder, "train", folder.vocabulary, most=NUM_CELLS)
    with pytest.raises(CorruptRowGroup, match=r"train-00003\.parquet, row group 0"):
        folder.to_anndata("train")
