"""The loader: the same tokens whatever the processes, the prefetching and the restarts, and nothing left out."""

import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from simulated_shards import simulated_counts, write_shards

from mdsc.config.schema import DataConfig
from mdsc.data.batch import CellBatch
from mdsc.data.condition_levels import condition_levels
from mdsc.data.loader import CellLoader
from mdsc.data.quarantine import Quarantine
from mdsc.data.shards import ShardFolder
from mdsc.data.token_groups import TokenGroups
from mdsc.data.tokenizers import make_tokenizer
from mdsc.data.validation_split import split_rows
from mdsc.errors import UserError

NUM_CELLS, NUM_GENES = 610, 120
SETTINGS = DataConfig(num_genes=40, num_lanes=4, window=4, validation_fraction=0.1, condition_columns=("drug",))


@pytest.fixture(scope="module")
def counts():
    """Column 0 is the cell's own number, so that a batch over all genes tells which cells it has."""
    counts = simulated_counts(NUM_CELLS, NUM_GENES).toarray()
    counts[:, 0] = 1 + np.arange(NUM_CELLS)
    return counts


@pytest.fixture(scope="module")
def folder(counts, tmp_path_factory) -> ShardFolder:
    from scipy.sparse import csr_matrix

    return write_shards(tmp_path_factory.mktemp("cells") / "shards", csr_matrix(counts), cells_per_shard=130)


def make_loader(folder, settings=SETTINGS, **options) -> CellLoader:
    options = {"seed": 0, "global_batch_size": 32, "levels": condition_levels(folder, ("drug",))} | options
    return CellLoader(folder, make_tokenizer("rank"), settings, **options)


def take(loader, number, start=0) -> list[CellBatch]:
    batches = loader.iterate(start)
    taken = list(islice(batches, number))
    batches.close()
    return taken


def assert_equal(one: CellBatch, other: CellBatch) -> None:
    for name in ("gene_ids", "counts", "tokens", "is_pad", "cell_index", "fold"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.categories["drug"], other.categories["drug"])


def joined(batches: list[CellBatch]) -> CellBatch:
    """The shares of all ranks as the global batch."""
    names = ("gene_ids", "counts", "tokens", "is_pad", "cell_index", "fold")
    whole = CellBatch(
        **{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names},
        categories={"drug": torch.cat([batch.categories["drug"] for batch in batches])},
    )
    return whole.select(whole.cell_index.argsort())


WHOLE = replace(SETTINGS, num_genes=NUM_GENES)


def cell_numbers(batch: CellBatch) -> list[int]:
    """Which cells a batch over all genes has."""
    return (batch.counts[:, 0] - 1).tolist()


@pytest.mark.parametrize("draw", ["detection", "uniform", "expressed"])
def test_tokens_do_not_depend_on_the_number_of_processes(folder, draw):
    settings = replace(SETTINGS, gene_draw=draw)
    steps = 25  # more than an epoch
    alone = take(make_loader(folder, settings), steps)
    for world_size in (2, 4):
        shares = [
            take(make_loader(folder, settings, rank=rank, world_size=world_size), steps) for rank in range(world_size)
        ]
        for step in range(steps):
            assert len(shares[0][step]) == 32 // world_size
            assert_equal(joined([share[step] for share in shares]), alone[step])


@pytest.mark.parametrize("draw", ["detection", "expressed"])
@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_resuming_at_any_step_goes_on_identically(folder, draw, prefetch):
    settings = replace(SETTINGS, gene_draw=draw)
    stream = take(make_loader(folder, settings), 40)
    for start in (1, 16, 17, 18, 33):
        resumed = take(make_loader(folder, replace(settings, prefetch=prefetch)), 5, start)
        for batch, expected in zip(resumed, stream[start : start + 5], strict=True):
            assert_equal(batch, expected)


def test_each_cell_comes_once_an_epoch_and_validation_cells_never(folder):
    loader = make_loader(folder, WHOLE)
    validation = set(cell_numbers(loader.validation_batch(NUM_CELLS)))
    assert len(validation) == NUM_CELLS - loader.plan.num_cells
    assert 50 < len(validation) < 75
    epochs = take(loader, 2 * loader.steps_per_epoch)
    for epoch in (epochs[: loader.steps_per_epoch], epochs[loader.steps_per_epoch :]):
        seen = [number for batch in epoch for number in cell_numbers(batch)]
        assert len(set(seen)) == len(seen)
        assert loader.plan.num_cells - len(seen) < 32
        assert not set(seen) & validation
    assert cell_numbers(epochs[0]) != cell_numbers(epochs[loader.steps_per_epoch])


def test_batches_hold_the_true_cells(folder, counts):
    """Counts, tokens of the *whole* cell and conditions, for a draw of a third of the genes."""
    tokenizer = make_tokenizer("rank")
    all_counts = torch.from_numpy(counts).long()
    all_tokens = tokenizer.encode_visible(all_counts, torch.ones_like(all_counts, dtype=torch.bool))
    whole = take(make_loader(folder, WHOLE), 3)
    for step, batch in enumerate(take(make_loader(folder), 3)):
        numbers = cell_numbers(whole[step])
        assert (batch.gene_ids.dtype, batch.counts.dtype, batch.tokens.dtype) == (torch.int32, torch.int32, torch.uint8)
        batch = batch.widened()
        assert (batch.gene_ids.dtype, batch.counts.dtype, batch.tokens.dtype) == (torch.int64, torch.int32, torch.int64)
        assert torch.equal(batch.counts, all_counts[numbers].gather(1, batch.gene_ids).int())
        assert torch.equal(batch.tokens, all_tokens[numbers].gather(1, batch.gene_ids))
        assert batch.categories["drug"].tolist() == [0 if n % 10 == 9 else 1 + n % 3 for n in numbers]


def test_a_group_shares_its_genes_and_groups_differ(folder):
    for draw in ("detection", "uniform"):
        batch = take(make_loader(folder, replace(SETTINGS, gene_draw=draw)), 1)[0]
        sets = batch.gene_ids.view(4, 8, -1)
        assert (sets == sets[:, :1]).all()
        assert len({tuple(genes.tolist()) for genes in sets[:, 0]}) == 4
        assert all(len(set(genes.tolist())) == SETTINGS.num_genes for genes in sets[:, 0])


def test_gene_sets_do_not_look_at_the_cells(folder, counts, tmp_path):
    """Other counts under the same detection rates: the same genes at each step."""
    from scipy.sparse import csr_matrix

    other = counts.copy()
    other[:, 1:] = np.random.default_rng(0).permuted(counts[:, 1:], axis=0) * 3
    shuffled = write_shards(tmp_path / "shards", csr_matrix(other), cells_per_shard=130)
    ours, theirs = take(make_loader(folder), 4), take(make_loader(shuffled), 4)
    for one, another in zip(ours, theirs, strict=True):
        assert torch.equal(one.gene_ids, another.gene_ids)
        assert not torch.equal(one.counts, another.counts)


def test_zeros_come_as_often_as_in_the_cells(folder, counts):
    """Of each gene alone, although frequently expressed genes are drawn more often."""
    loader = make_loader(folder)
    batches = take(loader, 12 * loader.steps_per_epoch)
    gene_ids = torch.cat([batch.gene_ids for batch in batches]).flatten().numpy()
    zero = torch.cat([batch.tokens for batch in batches]).flatten().numpy() == 0
    drawn = np.bincount(gene_ids, minlength=NUM_GENES)
    rate = np.bincount(gene_ids, zero, minlength=NUM_GENES) / np.maximum(drawn, 1)
    rows = np.concatenate([split_rows(ref, 0.1)[0] + 130 * n for n, ref in enumerate(loader.plan.row_groups)])
    truth = (counts[rows] == 0).mean(axis=0)
    often = drawn > 300
    assert often.mean() > 0.9
    error = np.abs(rate - truth)[often]
    assert (error < 5 * np.sqrt(truth * (1 - truth) / np.minimum(drawn, len(rows)))[often] + 1e-9).all()
    assert abs((rate * drawn).sum() - (truth * drawn).sum()) / drawn.sum() < 0.01
    assert np.corrcoef(drawn[1:], (counts[:, 1:] > 0).mean(axis=0))[0, 1] > 0.9


def test_expressed_draw_has_no_zero(folder, counts):
    settings = replace(SETTINGS, gene_draw="expressed")
    all_counts = torch.from_numpy(counts).long()
    all_tokens = make_tokenizer("rank").encode_visible(all_counts, torch.ones_like(all_counts, dtype=torch.bool))
    for batch, whole in zip(take(make_loader(folder, settings), 3), take(make_loader(folder, WHOLE), 3), strict=True):
        real, numbers = ~batch.is_pad, cell_numbers(whole)
        for found, true in ((batch.counts, all_counts), (batch.tokens, all_tokens)):
            assert torch.equal(found[real].long(), true[numbers].gather(1, batch.gene_ids.long())[real])
        assert (batch.counts[real] > 0).all()
        assert (batch.tokens[real] > 0).all()
        assert (batch.tokens[batch.is_pad] == make_tokenizer("rank").pad_token).all()
        assert (batch.counts[batch.is_pad] == 0).all()
        assert (batch.gene_ids[batch.is_pad] == 0).all()
        numbers = real.sum(dim=1)
        assert (numbers < SETTINGS.num_genes).any()
        assert (numbers == SETTINGS.num_genes).any()
        for genes, is_real in zip(batch.gene_ids, real, strict=True):
            assert len(set(genes[is_real].tolist())) == is_real.sum()


def test_validation_is_the_same_for_every_run(folder):
    first = make_loader(folder).validation_batch(20)
    assert len(first) == 20
    assert not first.is_pad.any()
    assert (first.counts == 0).any()
    settings = replace(SETTINGS, gene_draw="expressed", num_lanes=2)
    assert_equal(make_loader(folder, settings, seed=7, rank=1, world_size=2).validation_batch(20), first)
    few = make_loader(folder, WHOLE).validation_batch(20)
    assert len({number // 130 for number in cell_numbers(few)}) == 5  # spread over all row groups


def test_unknown_levels_are_zero(folder):
    loader = make_loader(folder, levels={"drug": ("drug 2",)})
    assert set(take(loader, 1)[0].categories["drug"].tolist()) == {0, 1}
    assert make_loader(folder, levels={}).validation_batch(5).categories == {}


def test_condition_levels(folder):
    assert condition_levels(folder, ("drug",)) == {"drug": ("drug 0", "drug 1", "drug 2")}
    assert condition_levels(folder, ()) == {}
    with pytest.raises(UserError, match=r"no column 'dose' \(it has: drug\)"):
        condition_levels(folder, ("dose",))


def test_row_groups_are_read_once_while_they_fit(folder, monkeypatch):
    reads = []
    read = ShardFolder.read
    monkeypatch.setattr(
        ShardFolder,
        "read",
        lambda self, ref, columns, **options: reads.append(ref) or read(self, ref, columns, **options),
    )
    loader = make_loader(folder)
    take(loader, 3 * loader.steps_per_epoch)
    assert len(reads) == len(set(reads)) == 5


def test_row_groups_in_use_are_kept_and_others_while_there_is_room(folder):
    kept = TokenGroups(Quarantine(folder, validation_fraction=0.1), make_tokenizer("rank"), {}, capacity=2)
    refs = folder.row_groups("train")
    groups = [weakref.ref(kept.get([ref], [refs[1], ref])[0]) for ref in refs]
    assert [group() is not None for group in groups] == [False, True, False, False, True]
    assert kept.get([refs[1]], [refs[1]])[0] is groups[1]()
    assert len(kept.get(refs, refs)) == 5
    assert groups[1]() is not None
    assert groups[4]() is not None
    # A step may still need what is not of its lanes' windows any more; and only as many as are too many go.
    assert len(kept.get(refs, refs[:1])) == 5
    assert [group() is not None for group in groups].count(True) >= 2
    kept = TokenGroups(Quarantine(folder, validation_fraction=0.1), make_tokenizer("rank"), {}, capacity=3)
    groups = [weakref.ref(kept.get([ref], [ref])[0]) for ref in refs]
    assert [group() is not None for group in groups] == [False, False, True, True, True]


def test_seeking_reads_only_what_the_step_needs(folder, monkeypatch):
    settings = replace(SETTINGS, window=1, num_lanes=1, prefetch=0)
    loader = make_loader(folder, settings, global_batch_size=8)
    read, reads = ShardFolder.read, []
    monkeypatch.setattr(
        ShardFolder,
        "read",
        lambda self, ref, columns, **options: reads.append(ref) or read(self, ref, columns, **options),
    )
    take(loader, 1, start=10 * loader.steps_per_epoch + loader.steps_per_epoch // 2)
    assert len(reads) <= 2


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mdsc-prefetch"]


def test_stopping_early_ends_the_thread(folder):
    for number in (1, 3):
        batches = make_loader(folder).iterate()
        for _ in range(number):
            next(batches)
        assert len(prefetch_threads()) == 1
        batches.close()
        assert not prefetch_threads()
    batches = make_loader(folder).iterate()
    next(batches)
    del batches
    assert not prefetch_threads()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_an_error_while_reading_reaches_the_consumer(folder, monkeypatch, prefetch):
    loader = make_loader(folder, replace(SETTINGS, prefetch=prefetch))
    batches = loader.iterate()
    next(batches)
    broken = ValueError("a broken row group")

    def fail(*_):
        raise broken

    monkeypatch.setattr(CellLoader, "_part", fail)
    with pytest.raises(ValueError, match="a broken row group") as caught:
        list(islice(batches, 10))
    assert caught.value is broken
    assert not prefetch_threads()


def test_a_process_can_end_without_closing():
    """Items are still being made when the interpreter shuts down: it must neither hang nor print a traceback."""
    script = """
from itertools import count
from mdsc.data.prefetch import prefetched
items = prefetched(count(), 2)
print(next(items), next(items))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0 1\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        pytest.param(SETTINGS, {"rank": 0, "world_size": 3}, "multiple of the number of processes, 3", id="lanes"),
        pytest.param(SETTINGS, {"global_batch_size": 6}, "multiple of --data.num-lanes 4", id="batch"),
        pytest.param(SETTINGS, {"global_batch_size": 1024}, "take a smaller global batch", id="few cells"),
    ],
)
def test_settings_that_cannot_be(folder, settings, options, message):
    with pytest.raises(UserError, match=message):
        make_loader(folder, settings, **options)


def test_no_validation_cells_are_told(folder):
    with pytest.raises(UserError, match=r"--data.validation-fraction 0.0 leaves no validation cell"):
        make_loader(folder, replace(SETTINGS, validation_fraction=0.0)).validation_batch(5)
