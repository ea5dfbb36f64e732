"""A model that starts from what one pass over the training cells tells: frequencies, values and a truncated SVD.

Step 0 equals the gene-marginal baseline, and the factor model of the cell-state pathway is already that of the training
cells. Without it a small masked model sits on the gene marginal for hundreds of steps (docs/results/ablations.md).
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import orthogonal_procrustes

from mdsc.config.schema import ModelConfig
from mdsc.data.level_features import FittedFeatures
from mdsc.data.shard_statistics import CellFactors, ShardStatistics
from mdsc.data.tokenizers import Tokenizer
from mdsc.model.configuration import MdscConfig
from mdsc.model.gene_evidence import GeneEvidence
from mdsc.model.modeling import MdscModel

MIN_NOISE_VARIANCE = 0.02  # of log1p counts: a gene hardly ever seen must not look noiseless
PRIOR_CELLS = 1.0  # weight, in cells, of the law of all genes in a gene's own token frequencies


def build_model(
    config: ModelConfig,
    tokenizer: Tokenizer,
    shard_statistics: ShardStatistics,
    condition_levels: dict[str, tuple[str, ...]] | None = None,
    features: dict[str, FittedFeatures] | None = None,
) -> MdscModel:
    """A new model for these genes and tokens. Random numbers come from torch's global generator.

    features: of the levels of some of the condition columns.
    """
    features = features or {}
    num_genes, num_tokens = shard_statistics.token_frequency.shape
    model = MdscModel(
        MdscConfig(
            num_genes=num_genes,
            num_tokens=num_tokens,
            backbone=config.backbone,
            num_latents=config.num_latents,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            state_size=config.state_size,
            state_pooling=config.state_pooling,
            factor_size=config.factor_size,
            state_dropout=config.state_dropout,
            dropout=config.dropout,
            condition_levels={name: list(levels) for name, levels in (condition_levels or {}).items()},
            vector_sizes={name: fitted.size for name, fitted in features.items()},
            feature_names={name: list(fitted.names) for name, fitted in features.items()},
            feature_sizes={name: len(fitted.mean) for name, fitted in features.items()},
            condition_rank=config.condition_rank if condition_levels else 0,
            attn_implementation=config.attention,
        )
    )
    with torch.no_grad():
        _set(model.output_bias.weight, gene_log_frequencies(shard_statistics.token_frequency))
        _set(model.cell_state.gene_value, shard_statistics.factors.gene_mean)
        _set(model.cell_state.mean_count, shard_statistics.mean_count)
        if config.gene_init == "svd":
            _start_from_svd(model, shard_statistics.factors)
        if config.factor_size:
            _set_gene_evidence(model.gene_evidence, shard_statistics, bool(model.conditions.names))
        for name, fitted in features.items():
            table = model.conditions.table(name)
            _set(table.vectors, fitted.vectors)
            _set(table.mean, fitted.mean)
            _set(table.basis, fitted.basis)
    return model


def gene_log_frequencies(token_frequency: Float[np.ndarray, "genes tokens"]) -> Float[np.ndarray, "genes tokens"]:
    """Log of each gene's token frequencies, shrunk towards the law of all genes by a weight of PRIOR_CELLS cells.

    No token is impossible. But above the highest that any training cell has, each is a quarter as likely as the one
    below: among millions of draws, a token that nobody has seen must not turn up as a count of thousands.
    """
    number = token_frequency.sum(axis=0)
    beyond = np.maximum(np.arange(len(number)) - np.flatnonzero(number).max(initial=0), 0)
    law = number + 0.5 * 0.25**beyond
    shrunk = token_frequency + PRIOR_CELLS * law / law.sum()
    return np.log(shrunk / shrunk.sum(axis=1, keepdims=True))


def _start_from_svd(model: MdscModel, factors: CellFactors) -> None:
    """Loadings, prior and noise of the factor model; read-out and gene embedding along the same directions.

    The loadings are stored with unit mean square per factor, and their size goes to the prior, which is the same model
    but suits an optimiser whose steps have one size for all parameters.
    """
    state_size = model.config.state_size
    loadings = factors.gene_vectors[:, :state_size]  # singular vector * singular value / sqrt(cells)
    size = np.sqrt(np.square(loadings).mean(axis=0))
    usable = min(int((size > 1e-6).sum()), state_size)  # small data has fewer directions than the state has room for
    loadings, size = loadings[:, :usable], size[:usable]
    unit = loadings / size
    state = model.cell_state
    noise = np.square(factors.gene_sd) - np.square(loadings).sum(axis=1)
    _set(state.log_precision, -np.log(np.maximum(noise, MIN_NOISE_VARIANCE)))
    state.gene_out.weight.mul_(0.1)
    if not usable:
        return  # the cells are all alike
    _set(state.log_prior[:usable], -2 * np.log(size))
    state.log_prior[usable:] = -2 * math.log(size[-1])
    _set(state.gene_in.weight[:, :usable], unit)
    _set(state.gene_out.weight[:, :usable], 0.5 * loadings / (loadings.std() or 1.0))
    if model.config.num_layers:
        width = model.config.hidden_size
        directions = torch.randn(usable, width) / usable**0.5
        own = 0.2 * torch.randn(len(unit), width)
        model.gene_embedding.weight.copy_(0.5 * torch.from_numpy(unit).float() @ directions + own)


def _set_gene_evidence(evidence: GeneEvidence, statistics: ShardStatistics, has_conditions: bool) -> None:
    """The tables of probabilistic PCA, of all training cells and of all but each fold."""
    level = np.log(statistics.mean_count + 1e-3)
    _set(evidence.gene_sd, statistics.factors.gene_sd + 0.05)
    _set(evidence.gene_level, (level - level.mean()) / max(level.std(), 1e-6))
    factor_size = evidence.loadings.shape[1]
    loadings, precision = _probabilistic_pca(statistics.factors, factor_size)
    _set(evidence.gene_mean, statistics.factors.gene_mean)
    _set(evidence.precision, precision)
    _set(evidence.loadings, loadings)
    if statistics.without_fold:
        fits = [_probabilistic_pca(factors, factor_size) for factors in statistics.without_fold]
        # A rotation of the factors leaves their law as it is. Conditions have one prior mean for all folds, which must
        # mean the same in each.
        if has_conditions:
            fits = [(fold @ orthogonal_procrustes(fold, loadings)[0], noise) for fold, noise in fits]
        gene_means = np.stack([factors.gene_mean for factors in statistics.without_fold])
        evidence.fold_gene_mean = torch.tensor(gene_means, dtype=torch.float32)
        evidence.fold_loadings = torch.tensor(np.stack([loadings for loadings, _ in fits]), dtype=torch.float32)
        evidence.fold_precision = torch.tensor(np.stack([precision for _, precision in fits]), dtype=torch.float32)


def _probabilistic_pca(
    factors: CellFactors, size: int
) -> tuple[Float[np.ndarray, "genes factors"], Float[np.ndarray, " genes"]]:
    """Loadings at unit variance of the factors, and the precision of each gene's noise.

    A direction's variance holds that of the noise in it, which is what the directions left out have on average
    (Tipping & Bishop 1999, equation 11).
    """
    vectors = factors.gene_vectors[:, :size]
    variance = np.square(vectors).sum(axis=0)
    left = np.square(factors.gene_sd).sum() - variance.sum()
    noise = max(left, 0.0) / max(len(vectors) - size, 1)
    kept = np.sqrt(np.maximum(variance - noise, 0) / np.maximum(variance, 1e-12))
    loadings = vectors * kept
    own = np.square(factors.gene_sd) - np.square(loadings).sum(axis=1)
    return loadings, 1 / np.maximum(own, MIN_NOISE_VARIANCE)


def _set(parameter: torch.Tensor, values: np.ndarray) -> None:
    assert parameter.shape == values.shape, (parameter.shape, values.shape)
    parameter.copy_(torch.tensor(values))  # a copy: some of these arrays are read-only
