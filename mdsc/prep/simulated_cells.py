"""Simulated cells whose truth is known: cell types, gene programs, drugs, depth, negative-binomial counts.

Cell c of type k under drug d, with depth D_c: count of gene g ~ NB(mean D_c * p_kdg, dispersion r), independently,
with p_kd = softmax over genes of base_g + (activity @ loadings)_kg + effect_dg. So the law of every count given type,
drug and depth is exact (`Truth.log_pmf`); what some genes tell about others is type, drug and depth.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Integer
from safetensors import safe_open
from safetensors.numpy import save_file

from mdsc.errors import UserError

if TYPE_CHECKING:
    import scipy.sparse as sp

# Cells are drawn this many at a time, each chunk from its own stream: the first cells are the same in any total.
CHUNK_CELLS = 1000
CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    num_cells: int = 5000
    """Cells."""
    num_genes: int = 500
    """Genes."""
    num_types: int = 6
    """Cell types, equally frequent."""
    num_programs: int = 4
    """Gene programs: the rank of what tells the types apart."""
    program_size: float = 1.0
    """Standard deviation over genes of the log rates that programs add."""
    num_drugs: int = 3
    """Drugs beside "control"; all equally frequent."""
    genes_per_drug: int = 20
    """Genes that a drug changes."""
    drug_effect: float = 1.0
    """Size of that change in log rate; its sign differs from gene to gene."""
    feature_size: int = 0
    """Length of a vector of features that each drug has, and to which its effect is linear: a sum of as many sets of
    genes_per_drug genes, one for each feature. 0: effects have nothing in common."""
    unseen_drugs: int = 0
    """Drugs, the last ones, of which all cells are held out."""
    median_depth: float = 1000.0
    """Median counts of a cell."""
    depth_spread: float = 0.4
    """Standard deviation of the log depth."""
    dispersion: float = 2.0
    """r of the negative binomial: variance = mean + mean^2 / r."""
    heldout_fraction: float = 0.2
    """Share of cells of split "heldout"; the rest is "train"."""
    seed: int = 0
    """Seeds the truth and the cells."""

    def __post_init__(self) -> None:
        if self.num_cells < 1 or self.num_types < 1 or not 0 <= self.genes_per_drug <= self.num_genes:
            raise UserError("give 1 or more cells and types, and no more genes per drug than genes")
        if not 0 <= self.unseen_drugs <= self.num_drugs or self.feature_size < 0:
            raise UserError("give no more unseen drugs than drugs, and a feature size of 0 or more")


@dataclass(frozen=True, eq=False)
class Truth:
    """Everything that the cells are drawn from."""

    config: SimulationConfig
    probabilities: Float64[np.ndarray, "types drugs genes"]
    """Expected share of the depth that each gene has; drug 0 is control."""
    effects: Float64[np.ndarray, "drugs genes"]
    """What a drug adds to the log rate; 0 for genes it does not change."""
    features: Float64[np.ndarray, "drugs features"]
    """Of each drug; zeros for control."""

    @classmethod
    def of(cls, config: SimulationConfig) -> "Truth":
        rng = np.random.default_rng([config.seed, 0])
        base = rng.normal(0, 1.5, config.num_genes)
        activity = rng.normal(0, 1, (config.num_types, config.num_programs))
        loadings = rng.normal(
            0, config.program_size / config.num_programs**0.5, (config.num_programs, config.num_genes)
        )
        effects = np.zeros((1 + config.num_drugs, config.num_genes))
        for row in effects[1:]:
            genes = rng.choice(config.num_genes, config.genes_per_drug, replace=False)
            row[genes] = config.drug_effect * rng.choice([-1, 1], config.genes_per_drug)
        features = np.zeros((1 + config.num_drugs, config.feature_size))
        if config.feature_size:
            rng = np.random.default_rng([config.seed, 2])  # of its own: what is drawn without features stays the same
            features[1:] = rng.normal(0, 1, (config.num_drugs, config.feature_size))
            of_feature = np.zeros((config.feature_size, config.num_genes))
            for row in of_feature:
                genes = rng.choice(config.num_genes, config.genes_per_drug, replace=False)
                row[genes] = config.drug_effect * rng.choice([-1, 1], config.genes_per_drug)
            effects = features @ of_feature
        log_rates = base + (activity @ loadings)[:, None] + effects
        rates = np.exp(log_rates)
        return cls(config, rates / rates.sum(axis=-1, keepdims=True), effects, features)

    @property
    def types(self) -> list[str]:
        return [f"type{k}" for k in range(self.config.num_types)]

    @property
    def drugs(self) -> list[str]:
        return [CONTROL, *(f"drug{d}" for d in range(1, 1 + self.config.num_drugs))]

    @property
    def genes(self) -> list[str]:
        return [f"GENE{g:05d}" for g in range(self.config.num_genes)]

    def means(
        self,
        cell_type: Integer[np.ndarray, " cells"],
        drug: Integer[np.ndarray, " cells"],
        depth: Float64[np.ndarray, " cells"],
    ) -> Float64[np.ndarray, "cells genes"]:
        """Expected counts."""
        return depth[:, None] * self.probabilities[cell_type, drug]

    def log_pmf(
        self,
        counts: Integer[np.ndarray, "cells genes"],
        cell_type: Integer[np.ndarray, " cells"],
        drug: Integer[np.ndarray, " cells"],
        depth: Float64[np.ndarray, " cells"],
    ) -> Float64[np.ndarray, "cells genes"]:
        """log p(count) of each gene given the cell's type, drug and depth, in nats: what no model can beat."""
        from scipy.stats import nbinom

        means = self.means(cell_type, drug, depth)
        dispersion = self.config.dispersion
        return nbinom.logpmf(counts, dispersion, dispersion / (dispersion + means))

    def save(self, path: Path) -> None:
        arrays = {"probabilities": self.probabilities, "effects": self.effects, "features": self.features}
        save_file(arrays, path, metadata={"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> "Truth":
        """From the file that lies among the shards, as `truth.safetensors`."""
        with safe_open(path, framework="numpy") as file:
            config = SimulationConfig(**json.loads(file.metadata()["config"]))
            effects = file.get_tensor("effects")
            # A file of an older version has no features.
            features = file.get_tensor("features") if "features" in file.keys() else np.zeros((len(effects), 0))  # noqa: SIM118
            return cls(config, file.get_tensor("probabilities"), effects, features)


@dataclass(frozen=True, eq=False)
class SimulatedCells:
    counts: "sp.csr_matrix"
    """(cells, genes) int32."""
    cell_type: Integer[np.ndarray, " cells"]
    drug: Integer[np.ndarray, " cells"]
    depth: Float64[np.ndarray, " cells"]
    is_heldout: np.ndarray
    """(cells,) bool."""
    start: int
    """Number of the first cell."""

    def obs(self, truth: Truth) -> dict[str, np.ndarray]:
        """Columns of obs: labels for numbers."""
        return {
            "cell_type": np.array(truth.types, dtype=object)[self.cell_type],
            "drug": np.array(truth.drugs, dtype=object)[self.drug],
            "depth": self.depth,
            "split": np.where(self.is_heldout, "heldout", "train").astype(object),
        }

    @property
    def names(self) -> np.ndarray:
        return np.array([f"sim{self.start + row}" for row in range(len(self.depth))], dtype=object)


def simulate_chunks(truth: Truth) -> Iterator[SimulatedCells]:
    """The cells of `truth.config`, 1,000 at a time. Chunk i depends on seed and i alone."""
    import scipy.sparse as sp

    config = truth.config
    for start in range(0, config.num_cells, CHUNK_CELLS):
        rng = np.random.default_rng([config.seed, 1, start // CHUNK_CELLS])
        cell_type = rng.integers(config.num_types, size=CHUNK_CELLS)
        drug = rng.integers(1 + config.num_drugs, size=CHUNK_CELLS)
        depth = config.median_depth * np.exp(config.depth_spread * rng.normal(size=CHUNK_CELLS))
        is_heldout = rng.random(CHUNK_CELLS) < config.heldout_fraction
        is_heldout |= drug > config.num_drugs - config.unseen_drugs
        # A negative binomial is a Poisson with a gamma-distributed rate.
        noise = rng.standard_gamma(config.dispersion, (CHUNK_CELLS, config.num_genes)) / config.dispersion
        counts = rng.poisson(truth.means(cell_type, drug, depth) * noise).astype(np.int32)
        kept = slice(0, min(CHUNK_CELLS, config.num_cells - start))
        csr = sp.csr_matrix(counts[kept])
        yield SimulatedCells(csr, cell_type[kept], drug[kept], depth[kept], is_heldout[kept], start)
