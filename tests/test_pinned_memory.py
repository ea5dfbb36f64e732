"""Batches for a GPU are pinned by the thread that reads ahead, batches for a CPU never; the cells stay the same."""

import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, tiny_shards

from mdsc.data.batch import CellBatch
from mdsc.data.loader import CellLoader
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pinned")
    tiny_shards(folder)
    return folder


def loader_of(folder: Path, **options) -> CellLoader:
    settings = replace(tiny_config(folder).data, condition_columns=("drug",), **options)
    shards = ShardFolder.open(settings.dir)
    levels = {"drug": ("drug 0", "drug 1")}
    return CellLoader(shards, make_tokenizer("rank"), settings, seed=0, global_batch_size=16, levels=levels)


def tensors(batch: CellBatch) -> list[torch.Tensor]:
    fields = (batch.gene_ids, batch.counts, batch.tokens, batch.is_pad, batch.cell_index, batch.fold)
    return [*fields, *batch.categories.values()]


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What CUDA would be asked for, and by which thread."""
    found = []

    def note(what):
        found.append((what, threading.current_thread().name))

    monkeypatch.setattr(torch.cuda, "set_device", note)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: note("pin") or tensor.clone())
    return found


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 2), (2, 2)])
def test_only_batches_for_a_gpu_are_pinned_and_in_the_background(folder: Path, asked: list, workers, prefetch):
    loader = loader_of(folder, workers=workers, prefetch=prefetch)
    plain = list(islice(loader.iterate(3), 2))
    for device in (None, CPU):
        again = list(islice(loader.iterate(3, device), 2))
        assert all(map(torch.equal, tensors(again[1]), tensors(plain[1])))
    assert asked == []

    batches = loader.iterate(3, GPU)
    for expected in plain:
        assert all(map(torch.equal, tensors(next(batches)), tensors(expected)))
    batches.close()
    assert asked[0] == (GPU, "mdsc-prefetch"), "else a thread opens a context on the first GPU, too"
    assert asked.count((GPU, "mdsc-prefetch")) == 1
    assert {thread for _, thread in asked} == {"mdsc-prefetch"}
    pins = [what for what, _ in asked].count("pin")
    assert pins % len(tensors(plain[0])) == 0
    assert pins >= 2 * len(tensors(plain[0]))
    assert not [thread for thread in threading.enumerate() if thread.name == "mdsc-prefetch"]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_errors_reach_the_consumer_through_the_thread(folder: Path, monkeypatch, workers: int):
    loader = loader_of(folder, workers=workers, prefetch=1)
    closed = []
    joined = CellLoader._joined_steps

    def watched(self, parts, number):
        try:
            yield from joined(self, parts, number)
        finally:
            closed.append(threading.current_thread().name)

    def fail(*_):
        raise UserError("a broken row group")

    monkeypatch.setattr(CellLoader, "_joined_steps", watched)
    batches = loader.iterate(0, GPU)
    next(batches)
    batches.close()
    assert closed == ["mdsc-prefetch"], "readers are ended by the thread that has begun them"
    if not workers:
        monkeypatch.setattr(CellLoader, "_part", fail)
        with pytest.raises(UserError, match="a broken row group"):
            next(loader.iterate(0, GPU))


@needs_cuda
@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_gpu_every_cell_arrives_though_the_host_goes_on(folder: Path, workers: int):
    """The device is kept busy, so that each copy waits while later batches are pinned: none may be overwritten."""
    loader, device = loader_of(folder, workers=workers), torch.device("cuda", torch.cuda.current_device())
    expected = list(islice(loader.iterate(), 40))
    batches = loader.iterate(0, device)
    busy = torch.randn(4096, 4096, device=device)
    sent = []
    for _ in expected:
        for _ in range(5):
            busy = torch.nn.functional.normalize(busy @ busy)
        batch = next(batches)
        assert all(tensor.is_pinned() for tensor in tensors(batch))
        sent.append(batch.to(device, non_blocking=True))
        del batch
    batches.close()
    for mine, theirs in zip(sent, expected, strict=True):
        assert all(torch.equal(one.cpu(), other) for one, other in zip(tensors(mine), tensors(theirs), strict=True))
