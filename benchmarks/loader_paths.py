"""Ways to read cells that benchmarks/loader.py compares: bare decoding, our loader, HF datasets, a collator by cell."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from mdsc.config.schema import DataConfig
from mdsc.data.loader import CellLoader
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer

COLUMNS = ["genes", "expressions"]
NUM_BINS = 51
PAD_TOKEN, PAD_VALUE, NUM_GENES = 0, -2.0, 1024
STREAM_BATCH = 1000


def raw_decode(folder: ShardFolder) -> Iterator[int]:
    """The two list columns as Arrow tables, a row group at a time: no loader that reads this format can be faster."""
    for ref in folder.row_groups():
        with pq.ParquetFile(folder.path / ref.file) as file:
            yield file.read_row_group(ref.group, columns=COLUMNS).num_rows


def our_loader(folder: ShardFolder, batch_size: int, workers: int) -> CellLoader:
    """Fully shuffled and checked; no validation cells, so that all ways read the same number."""
    settings = DataConfig(validation_fraction=0.0, workers=workers, prefetch=2 if workers else 0)
    return CellLoader(folder, make_tokenizer("rank"), settings, seed=0, global_batch_size=batch_size)


def one_epoch(folder: ShardFolder, batch_size: int, workers: int) -> Iterator[int]:
    loader = our_loader(folder, batch_size, workers)
    batches = loader.iterate()
    for _ in range(loader.steps_per_epoch):
        yield len(next(batches))
    batches.close()


def hf_stream(folder: ShardFolder):
    """A streaming dataset of the two columns."""
    import datasets

    files = [str(folder.path / shard.file) for shard in folder.manifest.shards]
    return datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True, columns=COLUMNS)


def hf_rows(folder: ShardFolder) -> Iterator[int]:
    for _ in hf_stream(folder):
        yield 1


def hf_batches(folder: ShardFolder) -> Iterator[int]:
    for batch in hf_stream(folder).with_format("numpy").iter(STREAM_BATCH):
        yield len(batch["genes"])


def hf_collated(folder: ShardFolder, batch_size: int) -> Iterator[int]:
    """What models of this format train on: rows of a stream, then a collator that treats each cell in turn."""
    waiting: list[dict] = []
    for row in hf_stream(folder):
        waiting.append(row)
        if len(waiting) == batch_size:
            yield len(collate(waiting)["genes"])
            waiting = []


def collate(rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Each cell's expressed genes in 51 quantile bins, then 1,024 of them by chance, padded; CLS stays in front.

    The scheme of scGPT and tahoe-x1 (51 bins of equal size over the cell's nonzero values; sampled behind CLS).
    """
    genes = torch.full((len(rows), NUM_GENES), PAD_TOKEN, dtype=torch.long)
    values = torch.full((len(rows), NUM_GENES), PAD_VALUE)
    for place, row in enumerate(rows):
        gene, value = torch.tensor(row["genes"]), torch.tensor(row["expressions"])
        value[1:] = quantile_bins(value[1:])
        if len(gene) > NUM_GENES:
            chosen = 1 + torch.randperm(len(gene) - 1)[: NUM_GENES - 1]
            chosen = torch.cat([torch.zeros(1, dtype=torch.long), chosen])
            gene, value = gene[chosen], value[chosen]
        genes[place, : len(gene)], values[place, : len(value)] = gene, value
    return {"genes": genes, "values": values}


def quantile_bins(values: torch.Tensor) -> torch.Tensor:
    """Bins 1 .. 50 of a cell's nonzero values; a value that several bins share gets one of them by chance."""
    edges = torch.quantile(values, torch.linspace(0, 1, NUM_BINS - 1))
    left, right = torch.bucketize(values, edges), torch.bucketize(values, edges, right=True)
    bins = left + torch.rand(len(values)) * (right - left)
    return torch.ceil(bins).clamp(1, NUM_BINS - 1)


def seconds_to_first_batch(folder: Path, batch_size: int, share: float) -> float:
    """From opening the folder to a first batch, at this share of an epoch."""
    import time

    start = time.perf_counter()
    loader = our_loader(ShardFolder.open(folder), batch_size, 0)
    batches = loader.iterate(int(share * (loader.steps_per_epoch - 1)))
    next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return seconds


def plate_entropy(plates: np.ndarray, num_plates: int) -> float:
    """Bits; mean over device batches (batches, cells)."""
    counts = np.stack([np.bincount(batch, minlength=num_plates) for batch in plates])
    share = counts / counts.sum(axis=1, keepdims=True)
    return float(-(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1).mean())
