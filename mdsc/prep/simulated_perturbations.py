"""A file in GEARS' format with effects that are known, and that depend on the embeddings of the perturbed genes.

    mdsc prepare simulate-perturbations --output sim.h5ad --oracle oracle.h5ad
    mdsc prepare simulate-perturbations --output sim.h5ad --gene-embeddings genes.parquet --full

What it draws from is in `mdsc.prep.perturbation_truth`; uns["simulation"] of the file has the effects. The oracle is a
prediction file (`evaluate.py perturb`) that knows all but what no embedding tells: no model can expect to do better.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from mdsc.atomic import replacing
from mdsc.config.flags import parse_flags
from mdsc.data.h5ad_writer import GrowingCsr
from mdsc.data.level_features import LevelFeatures, read_features, write_features
from mdsc.data.log_expression import log_normalised
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.errors import UserError
from mdsc.prep.gears_file import CELL_TYPE, gears_obs, write_gears_file
from mdsc.prep.perturbation_truth import (
    CellStates,
    PerturbationSimulation,
    PerturbationTruth,
    draw_counts,
    random_embeddings,
)

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

FULL_CELLS, FULL_GENES = 68_603, 5_060
"""Of GEARS' Adamson file."""


@dataclass(frozen=True, kw_only=True)
class SimulatePerturbationsConfig:
    output: Path
    """h5ad file to write."""
    oracle: Path | None = None
    """h5ad file for the oracle's prediction: cells of each perturbation, and the real controls."""
    oracle_cells: int = 300
    """Cells that the oracle predicts of each perturbation."""
    gene_embeddings: Path | None = None
    """Vectors of genes (mdsc prepare gene-embeddings), of which --num-perturbations are perturbed. By default random
    vectors of invented genes, which are written too."""
    embeddings_output: Path | None = None
    """parquet file for those; by default beside --output."""
    genes: Path | None = None
    """Text file with symbols of measured genes, one a line; what is lacking is invented."""
    full: bool = False
    """The size of GEARS' Adamson file, 68,603 cells x 5,060 genes, whatever --num-cells and --num-genes say."""
    simulation: Annotated[PerturbationSimulation, tyro.conf.arg(name="")] = field(
        default_factory=PerturbationSimulation
    )
    """What is simulated."""

    @property
    def sized(self) -> PerturbationSimulation:
        if not self.full:
            return self.simulation
        return replace(self.simulation, num_cells=FULL_CELLS, num_genes=FULL_GENES)


def simulate_perturbations(
    config: PerturbationSimulation,
    embeddings: LevelFeatures | None = None,
    names: Sequence[str] = (),
    oracle_cells: int = 300,
) -> "tuple[AnnData, AnnData]":
    """The cells as GEARS' file has them, and the oracle's prediction of them, in memory.

    embeddings: of more genes than are perturbed, or random ones (`random_embeddings(config)`). names: measured genes.
    """
    import anndata

    truth = truth_of(config, embeddings, names)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "cells.h5ad", Path(folder) / "oracle.h5ad"
        write_simulation(truth, *paths, oracle_cells)
        return anndata.read_h5ad(paths[0]), anndata.read_h5ad(paths[1])


def truth_of(
    config: PerturbationSimulation, embeddings: LevelFeatures | None, names: Sequence[str] = ()
) -> PerturbationTruth:
    """Of the genes of the embeddings, as many as are to be perturbed, chosen by the seed where there are more."""
    embeddings = random_embeddings(config) if embeddings is None else embeddings
    genes = [row for row, name in enumerate(embeddings.names) if name != CONTROL and "+" not in name]
    if len(genes) < config.num_perturbations:
        raise UserError(
            f"{embeddings.source} has {len(genes):,} genes: give --num-perturbations {len(genes)} or fewer."
        )
    chosen = np.random.default_rng([config.seed, 5]).permutation(genes)[: config.num_perturbations]
    rows = sorted(chosen.tolist(), key=lambda row: embeddings.names[row])
    perturbed = LevelFeatures(tuple(embeddings.names[row] for row in rows), embeddings.values[rows], embeddings.source)
    return PerturbationTruth.of(config, perturbed, tuple(names))


def write_simulation(
    truth: PerturbationTruth, path: str | Path, oracle: str | Path | None = None, oracle_cells: int = 300
) -> None:
    """Write the cells, and the oracle's prediction. Memory holds a chunk of cells, and with an oracle the controls."""
    cells = CellStates.of(truth)
    conditions = [name if name == CONTROL else f"{name}+{CONTROL}" for name in truth.perturbations]
    names = np.array([f"cell{row:06d}" for row in range(len(cells))], dtype=object)
    batches = np.array([f"batch{number + 1}" for number in range(truth.config.num_batches)], dtype=object)[cells.batch]
    obs = gears_obs([conditions[place] for place in cells.perturbation], names.tolist(), batches.tolist())
    simulation = {
        "config": json.dumps(asdict(truth.config)),
        "perturbations": np.array(truth.perturbations, dtype=object),
        "effects_told": truth.told.astype(np.float32),
        "effects_own": truth.own.astype(np.float32),
    }
    controls: list[sp.csr_matrix] = []
    chunks = draw_counts(truth, cells, stream=0)
    if oracle is not None:
        chunks = _keeping_controls(chunks, cells.perturbation == 0, controls)
    write_gears_file(path, chunks, cells.perturbation, conditions, obs, truth.genes, {"simulation": simulation})
    if oracle is not None:
        _write_oracle(oracle, oracle_cells, truth, cells, names, batches, controls)


def _keeping_controls(
    chunks: Iterator[np.ndarray], is_control: np.ndarray, kept: "list[sp.csr_matrix]"
) -> Iterator[np.ndarray]:
    import scipy.sparse as sp

    start = 0
    for chunk in chunks:
        kept.append(sp.csr_matrix(chunk[is_control[start : start + len(chunk)]]))
        start += len(chunk)
        yield chunk


def _write_oracle(
    path: str | Path,
    cells_each: int,
    truth: PerturbationTruth,
    cells: CellStates,
    names: np.ndarray,
    batches: np.ndarray,
    controls: "list[sp.csr_matrix]",
) -> None:
    """The prediction file: cells of each perturbation, made from real control cells; then the real controls."""
    import h5py
    import pandas as pd
    import scipy.sparse as sp
    from anndata.io import write_elem

    control_rows = np.flatnonzero(cells.perturbation == 0)
    rows_of: list[np.ndarray] = []
    with replacing(path) as beside, h5py.File(beside, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        layers = file.create_group("layers")
        layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        x = GrowingCsr(file, "X", np.float32, len(truth.genes))
        counts = GrowingCsr(layers, "counts", np.int32, len(truth.genes))

        def write(chunk: sp.csr_matrix) -> None:
            counts.append(chunk)
            x.append(log_normalised(chunk).astype(np.float32))

        for place in range(1, len(truth.perturbations)):
            rng = np.random.default_rng([truth.config.seed, 6, place])
            rows_of.append(rng.choice(control_rows, cells_each, replace=cells_each > len(control_rows)))
            under = cells.perturbed_in(rows_of[-1], place, truth.config.seed)
            for chunk in draw_counts(truth, under, stream=place, with_own=False):
                write(sp.csr_matrix(chunk))
        for chunk in controls:
            write(chunk)
        perturbed = np.repeat(np.array(truth.perturbations, dtype=object)[1:], cells_each)
        rows = np.concatenate([*rows_of, control_rows])
        obs = pd.DataFrame(
            {
                COLUMN: np.concatenate([perturbed, np.full(len(control_rows), CONTROL, dtype=object)]),
                "cell_type": CELL_TYPE,
                "batch": batches[rows],
                "control_cell": names[rows],
            },
            index=[*(f"oracle{row:06d}" for row in range(len(perturbed))), *names[control_rows]],
        )
        write_elem(file, "obs", obs.astype(dict.fromkeys((COLUMN, "cell_type", "batch"), "category")))
        write_elem(file, "var", pd.DataFrame(index=list(truth.genes)))
        about = {"task": "perturbation", "model": "oracle of mdsc prepare simulate-perturbations"}
        write_elem(file, "uns", {"mdsc": about | {"simulation": json.dumps(asdict(truth.config))}})
        for name in ("obsm", "varm", "obsp", "varp"):
            write_elem(file, name, {})


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/simulate_perturbations.py --output sim.h5ad`"""
    config = parse_flags(SimulatePerturbationsConfig, argv, __doc__)
    names: list[str] = []
    if config.genes is not None:
        if not config.genes.is_file():
            raise UserError(f"there is no file {config.genes} (--genes).")
        names = list(filter(None, map(str.strip, config.genes.read_text(encoding="utf-8").splitlines())))
    if config.gene_embeddings is None:
        embeddings = random_embeddings(config.sized)
        written = config.embeddings_output or config.output.with_name(f"{config.output.stem}_embeddings.parquet")
        write_features(embeddings, written)
        print(f"{written}: random embeddings of {len(embeddings.names)} invented genes")
    elif config.embeddings_output is not None:
        raise UserError("--embeddings-output is for random embeddings: leave it out, or --gene-embeddings.")
    else:
        embeddings = read_features(config.gene_embeddings)
    truth = truth_of(config.sized, embeddings, names)
    write_simulation(truth, config.output, config.oracle, config.oracle_cells)
    size = f"{config.sized.num_cells:,} cells x {config.sized.num_genes:,} genes"
    print(f"{config.output}: {size}, {len(truth.perturbations) - 1} perturbations, as GEARS' files are")
    if config.oracle is not None:
        print(f"{config.oracle}: the best prediction of them, by who knows all but what no embedding tells")
