"""The `pooled` baseline: the pathway alone under the run's own options, and blind to hidden counts."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from simulated_shards import simulated_counts
from tiny_run import tiny_config

from mdsc.config.schema import TrainConfig
from mdsc.data.batch import batch_from_csr
from mdsc.data.genes import GeneVocabulary
from mdsc.diffusion.evidence import hide
from mdsc.evaluation.inpaint import ModelPredictor
from mdsc.evaluation.pooled import GENE_WEIGHT_DECAY, fit_pooled, pooled_config

NUM_GENES = 12
COUNTS = simulated_counts(60, NUM_GENES, mean=2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> TrainConfig:
    config = tiny_config(tmp_path_factory.mktemp("run"), pathway_steps=3, gene_weight_decay=7.0, batch_size=4)
    return replace(config, data=replace(config.data, condition_columns=("drug",)))


@pytest.fixture(scope="module")
def pooled(run) -> ModelPredictor:
    return fit_pooled(COUNTS, GeneVocabulary.of([f"G{number}" for number in range(NUM_GENES)]), run, max_steps=2)


def test_it_is_the_pathway_alone_with_the_schedule_that_suits_it(run):
    config = pooled_config(run, "shards", "out", 50)
    assert config.model == replace(run.model, num_layers=0, factor_size=0)
    assert (config.data.dir, config.data.condition_columns, config.output_dir) == ("shards", (), "out")
    assert config.data == replace(run.data, dir="shards", condition_columns=())
    assert config.train.learning_rate == run.train.pathway_learning_rate != run.train.learning_rate
    assert (config.train.pathway_steps, config.train.max_steps, config.train.batch_size) == (0, 50, None)
    assert config.train.gene_weight_decay == GENE_WEIGHT_DECAY != run.train.gene_weight_decay
    assert config.train.global_batch_size == run.train.global_batch_size
    assert (config.tokenizer, config.objective, config.seed) == (run.tokenizer, run.objective, run.seed)


def test_hidden_counts_never_matter_and_visible_ones_do(pooled):
    hidden = torch.rand(20, NUM_GENES, generator=torch.Generator().manual_seed(0)) < 0.5

    def log_probs(change: np.ndarray) -> np.ndarray:
        counts = sp.csr_matrix(COUNTS[:20].toarray() + 5 * change.astype(np.int32))
        return pooled.log_probs(hide(batch_from_csr(counts, np.arange(NUM_GENES), pooled.tokenizer), hidden))

    expected = log_probs(np.zeros(hidden.shape))
    np.testing.assert_allclose(np.exp(expected.astype(np.float64)).sum(axis=-1), 1, atol=1e-5)
    assert (log_probs(hidden.numpy()) == expected).all()
    assert (log_probs(~hidden.numpy()) != expected).any()
