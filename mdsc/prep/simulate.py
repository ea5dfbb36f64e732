"""Simulated cells (`simulated_cells`) into a folder of shards, an h5ad file or memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from mdsc.atomic import replacing
from mdsc.config.flags import parse_flags
from mdsc.data.genes import GeneVocabulary
from mdsc.data.output_folders import TRUTH
from mdsc.data.shard_writer import ShardWriter
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.prep.h5ad import summary
from mdsc.prep.simulated_cells import SimulationConfig, Truth, simulate_chunks

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    output_dir: Path | None = None
    """Folder for the shards, with truth.safetensors among them."""
    h5ad: Path | None = None
    """h5ad file for the cells."""
    cells: Annotated[SimulationConfig, tyro.conf.arg(name="")] = field(default_factory=SimulationConfig)
    """What is simulated."""


def simulate_shards(truth: Truth, output_dir: str | Path) -> ShardFolder:
    """Stream the cells into a folder of shards (conditions cell_type and drug), with the truth beside them."""
    sources = [{"file": "mdsc.prep.simulate", "cells": truth.config.num_cells}]
    vocabulary = GeneVocabulary.of(truth.genes)
    with ShardWriter(output_dir, vocabulary, ("cell_type", "drug"), sources=sources) as writer:
        for chunk in simulate_chunks(truth):
            obs, names = chunk.obs(truth), chunk.names
            for split in ("train", "heldout"):
                rows = np.flatnonzero(obs["split"] == split)
                if len(rows):
                    conditions = {name: obs[name][rows] for name in writer.condition_columns}
                    writer.write(split, chunk.counts[rows], conditions, names[rows])
        truth.save(writer.scratch / TRUTH)
    return ShardFolder.open(output_dir)


def simulate_h5ad(truth: Truth, path: str | Path) -> None:
    """Stream the cells into an h5ad file: counts in X; cell_type, drug, depth and split in obs."""
    import h5py
    import pandas as pd
    from anndata.io import sparse_dataset, write_elem

    with replacing(path) as beside, h5py.File(beside, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = []
        for chunk in simulate_chunks(truth):
            obs.append(pd.DataFrame(chunk.obs(truth), index=chunk.names))
            if "X" in file:
                sparse_dataset(file["X"]).append(chunk.counts)
            else:
                write_elem(file, "X", chunk.counts)
        write_elem(file, "obs", pd.concat(obs))
        write_elem(file, "var", pd.DataFrame(index=truth.genes))


def simulate_anndata(truth: Truth) -> "AnnData":
    """All cells in memory, as `simulate_h5ad` writes them."""
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    chunks = list(simulate_chunks(truth))
    obs = pd.concat([pd.DataFrame(chunk.obs(truth), index=chunk.names) for chunk in chunks])
    counts = sp.vstack([chunk.counts for chunk in chunks], format="csr")
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=truth.genes))


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/simulate.py --output-dir data/simulated --num-cells 100000`"""
    config = parse_flags(SimulateConfig, argv, __doc__)
    if config.output_dir is None and config.h5ad is None:
        raise UserError("nothing to write: give --output-dir, --h5ad or both")
    truth = Truth.of(config.cells)
    if config.output_dir is not None:
        print(summary(simulate_shards(truth, config.output_dir)))
    if config.h5ad is not None:
        simulate_h5ad(truth, config.h5ad)
        print(f"{config.h5ad}: {config.cells.num_cells:,} cells, {config.cells.num_genes:,} genes")
