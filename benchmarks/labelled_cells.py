"""Real cells with labels, split anew for each seed, and models trained on the training cells without labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from finished_steps import once
from inpaint import digest, run
from real_cells import TEST_SHARE, SplitCells, most_variable, shared_file, split_paths, write_split

from mdsc.checkpoint import WEIGHTS
from mdsc.data.anndata_counts import read_counts


@dataclass(frozen=True)
class LabelledData:
    """A file of shared/data, and what is held out of it."""

    file: str
    label: str
    """Column of obs with cell types, which score embeddings and train nothing."""
    donor: str | None = None
    """Column of obs: the cells of one donor are held out, of another one with each seed; else 20% of all cells."""


DATA = {
    "pbmc3k": LabelledData("pbmc3k", "cell_type"),
    "kang2018_ifnb": LabelledData("kang2018_ifnb", "cell_type"),
    "kang2018_donors": LabelledData("kang2018_donors", "cluster_id"),
    "kang2018_across": LabelledData("kang2018_donors", "cluster_id", donor="sample_id"),
}
NO_LABEL = "unassigned"


def labelled_split(name: str, folder: Path, seed: int, num_genes: int) -> SplitCells | None:
    """Files in `folder`, made where they are not there; None where shared/data has no such file."""
    data = DATA[name]
    source = shared_file(f"{data.file}.h5ad")
    if source is None:
        print(f"{name}: left out, because there is no shared/data/{data.file}.h5ad beside the repository")
        return None
    settings = {**asdict(data), "seed": seed, "num_genes": num_genes, "bytes": source.stat().st_size}
    size = once(folder / "split.json", settings, lambda: _split(data, source, folder, seed, num_genes))["result"]
    return split_paths(folder, size)


def _split(data: LabelledData, source: Path, folder: Path, seed: int, num_genes: int) -> dict[str, int]:
    """The test cells choose no gene."""
    from anndata import AnnData

    cells = read_counts(source)
    rng = np.random.default_rng(seed)
    if data.donor is None:
        is_test = np.zeros(len(cells.obs), dtype=bool)
        is_test[rng.permutation(len(is_test))[: round(TEST_SHARE * len(is_test))]] = True
    else:
        donors = cells.obs[data.donor].astype(str)
        is_test = (donors == sorted(set(donors))[seed % donors.nunique()]).to_numpy()
    genes = most_variable(cells.counts[~is_test], num_genes)
    obs = cells.obs[[data.label]].astype(str)
    obs.index = obs.index.astype(str)
    var = cells.var.iloc[genes][[]]
    adata = AnnData(cells.counts[:, genes], obs=obs, var=var)
    return write_split(adata[~is_test].copy(), adata[is_test].copy(), folder)


def trained(folder: Path, cells: SplitCells, config: Path, tokenizer: str, seed: int, flags: Sequence[str]) -> float:
    """Train into `folder` where that is not done, and give the seconds that it took."""
    command = ["train.py", "--config", str(config.resolve()), "--data.dir", str(cells.shards)]
    command += ["--output-dir", str(folder), "--seed", str(seed), "--tokenizer.name", tokenizer, *flags]
    if not (folder / WEIGHTS).is_file():
        (folder / "trained.json").unlink(missing_ok=True)
    settings = {"command": command, "config": digest(config), "cells": cells.size}
    return once(folder / "trained.json", settings, lambda: run(command))["seconds"]
