"""Simulated Perturb-seq whose effects are known, and of which the embedding of the perturbed gene tells a known share.

Counts of cell c, perturbed in p (0: not), of batch b and state k, at place t of the cell cycle, with depth D:

    count_g ~ NB(mean D * softmax_g(base + state_k + cycle(t) + batch_b + E_c * effect_p), dispersion r_g)
    effect_p = systematic + programs(W u_p) + own_p + knock-down of gene p

u_p are the leading principal components of the gene embeddings, W the same for all: `programs(W u_p)` is what a model
can learn of genes that it has not seen. `systematic` is common to all perturbations, as it is in Adamson et al. 2016,
where the mean of the training perturbations explains much of each; `own_p` is what no embedding tells. E_c is how well
the guide worked in the cell: 0 in some.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Integer

from mdsc.data.level_features import LevelFeatures
from mdsc.data.perturbations import CONTROL
from mdsc.errors import UserError
from mdsc.prep.simulated_cells import CHUNK_CELLS

KNOCK_DOWN = np.log(5)
"""What a guide that works takes off the log rate of its gene: four fifths of the counts."""
ESCAPED = 0.1
"""Share of perturbed cells whose guide does nothing."""
EFFICACY_SPREAD = 0.2
GENES_OF_PROGRAM = 0.3
GENES_OF_OWN = 0.2
CYCLE_GENES = 0.05
RANDOM_EMBEDDING = 64
"""Length of random gene embeddings."""


@dataclass(frozen=True, kw_only=True)
class PerturbationSimulation:
    num_perturbations: int = 86
    """Perturbed genes."""
    num_cells: int = 12_000
    """Cells, of which a third is not perturbed."""
    num_genes: int = 1000
    """Measured genes, the perturbed ones among them."""
    num_components: int = 5
    """Principal components of the embeddings that effects depend on."""
    num_programs: int = 12
    """Gene programs that they act by."""
    effect_size: float = 0.5
    """Root mean square over genes of a perturbation's effect on log rates."""
    systematic: float = 0.6
    """Share of the effects' variance that is common to all perturbations."""
    unexplained: float = 0.3
    """Share of the rest that is a perturbation's own, and that no embedding tells."""
    control_share: float = 0.35
    """Share of cells that are not perturbed."""
    num_batches: int = 4
    """Batches, of equal size."""
    batch_effect: float = 0.1
    """Standard deviation of a batch's effect on log rates."""
    median_depth: float = 10_000.0
    """Median counts of a cell."""
    depth_spread: float = 0.35
    """Standard deviation of the log depth."""
    seed: int = 0
    """Seeds the truth and the cells."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_perturbations <= self.num_genes:
            raise UserError(
                f"--num-perturbations {self.num_perturbations}: give 2 or more, and no more than --num-genes."
            )
        if self.num_cells < 20 * self.num_perturbations:
            raise UserError(f"--num-cells {self.num_cells}: give 20 for each perturbation or more.")
        for name in ("systematic", "unexplained", "control_share"):
            if not 0 <= getattr(self, name) <= 1 or (name == "control_share" and getattr(self, name) in (0, 1)):
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is no share.")
        if min(self.num_components, self.num_programs, self.num_batches) < 1:
            raise UserError("give 1 or more components, programs and batches.")


@dataclass(frozen=True, eq=False)
class PerturbationTruth:
    """What the cells are drawn from. Perturbation 0 is the control."""

    config: PerturbationSimulation
    perturbations: tuple[str, ...]
    """ctrl, and the symbols of the perturbed genes."""
    genes: tuple[str, ...]
    base: Float64[np.ndarray, " genes"]
    states: Float64[np.ndarray, "states genes"]
    cycle: Float64[np.ndarray, "2 genes"]
    batches: Float64[np.ndarray, "batches genes"]
    dispersion: Float64[np.ndarray, " genes"]
    told: Float64[np.ndarray, "perturbations genes"]
    """Systematic effect, programs and knock-down: all that an embedding can tell."""
    own: Float64[np.ndarray, "perturbations genes"]
    """What it cannot."""

    @classmethod
    def of(
        cls, config: PerturbationSimulation, embeddings: LevelFeatures, names: tuple[str, ...]
    ) -> "PerturbationTruth":
        """embeddings: of the perturbed genes alone, in order. names: more measured genes, taken in order; what they do
        not fill is invented."""
        rng = np.random.default_rng([config.seed, 0])
        perturbed, num_genes = embeddings.names, config.num_genes
        invented = [f"SIM{number:05d}" for number in range(1, num_genes + 1)]
        genes = tuple(dict.fromkeys([*perturbed, *names, *invented]))[:num_genes]
        genes = tuple(np.array(genes, dtype=object)[rng.permutation(num_genes)])
        u = _leading_components(embeddings.values, config.num_components)
        w = rng.normal(size=(u.shape[1], config.num_programs))
        programs = _sparse(rng, (config.num_programs, num_genes), GENES_OF_PROGRAM)
        rest = 1 - config.systematic
        systematic = _sparse(rng, (1, num_genes), GENES_OF_PROGRAM)
        told = _of_size(systematic, config.effect_size * config.systematic**0.5)
        told = told + _of_size(u @ w @ programs, config.effect_size * (rest * (1 - config.unexplained)) ** 0.5)
        own = _sparse(rng, (len(perturbed), num_genes), GENES_OF_OWN)
        own = _of_size(own, config.effect_size * (rest * config.unexplained) ** 0.5)
        place = {gene: number for number, gene in enumerate(genes)}
        told, own = (np.vstack([np.zeros((1, num_genes)), part]) for part in (told, own))
        for number, gene in enumerate(perturbed, start=1):
            told[number, place[gene]], own[number, place[gene]] = -KNOCK_DOWN, 0.0
        base = rng.normal(0, 1.4, num_genes)
        base[[place[gene] for gene in perturbed]] = rng.normal(0.7, 0.7, len(perturbed))  # else nothing to knock down
        return cls(
            config,
            (CONTROL, *perturbed),
            genes,
            base,
            states=_sparse(rng, (3, num_genes), 0.2) * 0.4,
            cycle=_sparse(rng, (2, num_genes), CYCLE_GENES) * 0.6,
            batches=rng.normal(0, config.batch_effect, (config.num_batches, num_genes)),
            dispersion=np.exp(rng.normal(np.log(4.0), 0.5, num_genes)),
            told=told,
            own=own,
        )


@dataclass(frozen=True, eq=False)
class CellStates:
    """All of some cells but their counts."""

    perturbation: Integer[np.ndarray, " cells"]
    batch: Integer[np.ndarray, " cells"]
    state: Integer[np.ndarray, " cells"]
    phase: Float64[np.ndarray, " cells"]
    """Place in the cell cycle, an angle."""
    efficacy: Float64[np.ndarray, " cells"]
    depth: Float64[np.ndarray, " cells"]

    def __len__(self) -> int:
        return len(self.perturbation)

    @classmethod
    def of(cls, truth: PerturbationTruth) -> "CellStates":
        """The cells of `truth.config`; each perturbation has 5 or more."""
        config, rng = truth.config, np.random.default_rng([truth.config.seed, 1])
        number, perturbed = config.num_cells, config.num_perturbations
        weights = rng.gamma(6.0, size=perturbed)
        weights = np.concatenate([[config.control_share], (1 - config.control_share) * weights / weights.sum()])
        sure = np.repeat(np.arange(1 + perturbed), 5)
        drawn = rng.choice(1 + perturbed, number - len(sure), p=weights)
        return cls(
            rng.permutation(np.concatenate([sure, drawn])),
            rng.integers(config.num_batches, size=number),
            rng.choice(3, number, p=[0.5, 0.3, 0.2]),
            rng.uniform(0, 2 * np.pi, number),
            _efficacies(rng, number),
            config.median_depth * np.exp(config.depth_spread * rng.normal(size=number)),
        )

    def perturbed_in(self, rows: Integer[np.ndarray, " cells"], perturbation: int, seed: int) -> "CellStates":
        """These cells as they would be under a perturbation, with guides that work anew."""
        rng = np.random.default_rng([seed, 3, perturbation])
        of_rows = (values[rows] for values in (self.batch, self.state, self.phase))
        return CellStates(np.full(len(rows), perturbation), *of_rows, _efficacies(rng, len(rows)), self.depth[rows])


def draw_counts(
    truth: PerturbationTruth, cells: CellStates, stream: int, *, with_own: bool = True
) -> Iterator[Integer[np.ndarray, "cells genes"]]:
    """Counts of the cells, 1,000 at a time. stream: of the random numbers; with_own: False is what embeddings tell."""
    effects = truth.told + truth.own if with_own else truth.told
    for start in range(0, len(cells), CHUNK_CELLS):
        rng = np.random.default_rng([truth.config.seed, 2, stream, start // CHUNK_CELLS])
        part = slice(start, start + CHUNK_CELLS)
        waves = np.stack([np.cos(cells.phase[part]), np.sin(cells.phase[part])], axis=1)
        log_rates = truth.base + truth.states[cells.state[part]] + truth.batches[cells.batch[part]]
        log_rates += waves @ truth.cycle
        log_rates += cells.efficacy[part, None] * effects[cells.perturbation[part]]
        rates = np.exp(log_rates)
        means = cells.depth[part, None] * rates / rates.sum(axis=1, keepdims=True)
        # A negative binomial is a Poisson with a gamma-distributed rate.
        yield rng.poisson(means * rng.standard_gamma(truth.dispersion, means.shape) / truth.dispersion).astype(np.int32)


def random_embeddings(config: PerturbationSimulation) -> LevelFeatures:
    """Vectors of invented genes, whose components fall off as those of text embeddings do."""
    rng = np.random.default_rng([config.seed, 4])
    names = tuple(f"GENE{number:04d}" for number in range(1, config.num_perturbations + 1))
    scale = 1 / np.sqrt(1 + np.arange(RANDOM_EMBEDDING))
    mixing = np.linalg.qr(rng.normal(size=(RANDOM_EMBEDDING, RANDOM_EMBEDDING)))[0]
    values = (rng.normal(size=(len(names), RANDOM_EMBEDDING)) * scale) @ mixing
    return LevelFeatures(names, values.astype(np.float32).astype(np.float64), "random embeddings")


def _efficacies(rng: np.random.Generator, number: int) -> Float64[np.ndarray, " cells"]:
    worked = rng.random(number) >= ESCAPED
    return worked * np.maximum(rng.normal(1.0, EFFICACY_SPREAD, number), 0)


def _leading_components(
    values: Float64[np.ndarray, "names features"], size: int
) -> Float64[np.ndarray, "names components"]:
    """Scores of the leading components, with mean square 1 over all."""
    left, sizes, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    scores = left[:, :size] * sizes[:size]
    if not np.sqrt(np.square(scores).mean()) > 1e-9:
        raise UserError("the embeddings of the perturbed genes are all the same: effects cannot depend on them.")
    return scores / np.sqrt(np.square(scores).mean())


def _sparse(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Float64[np.ndarray, "rows genes"]:
    """Normal numbers for a share of the genes of each row, mean square 1 in these; zeros else."""
    return rng.normal(size=shape) * (rng.random(shape) < share)


def _of_size(values: Float64[np.ndarray, "rows genes"], size: float) -> Float64[np.ndarray, "rows genes"]:
    return values * (size / max(np.sqrt(np.square(values).mean()), 1e-12))
