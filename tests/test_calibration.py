"""Zeros are predicted as often as they occur, although training drew frequently expressed genes more often."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float64

from mdsc.checkpoint import load_checkpoint
from mdsc.config.schema import DataConfig, ModelConfig, OptimConfig, TrainConfig, ValidationConfig
from mdsc.data.shards import ShardFolder
from mdsc.evaluation.cell_sources import read_shards
from mdsc.evaluation.inpaint import MODEL, HeldOutCells, ModelPredictor, score_inpainting
from mdsc.prep.simulate import simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth
from mdsc.training.command import train_to_the_end
from mdsc.training.progress import RunProgress
from mdsc.training.sharding import make_accelerator

NUM_GENES = 300
RATIO = 0.5
WORST_NOISE = 0.003
"""Standard error of the observed zero rate of a decile, were all its counts 0 or not by the toss of a coin."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    """4,000 training cells and some 2,000 held-out ones of 8 states; deciles of genes have 18% to 98% of zeros."""
    config = SimulationConfig(
        num_cells=6000,
        num_genes=NUM_GENES,
        num_types=4,
        num_drugs=1,
        median_depth=400.0,
        heldout_fraction=1 / 3,
    )
    return simulate_shards(Truth.of(config), tmp_path_factory.mktemp("calibration") / "shards")


def zero_rates(
    shards: ShardFolder, folder: Path, gene_draw: str, steps: int
) -> tuple[Float64[np.ndarray, " deciles"], Float64[np.ndarray, " deciles"]]:
    """Mean predicted p(count = 0) and observed share of zeros of held-out cells, by decile of gene expression."""
    config = TrainConfig(
        data=DataConfig(dir=str(shards.path), num_genes=192, gene_draw=gene_draw, prefetch=0),
        model=ModelConfig(hidden_size=32, num_layers=0, state_size=16),
        train=OptimConfig(
            max_steps=steps,
            global_batch_size=128,
            learning_rate=1e-2,
            warmup_steps=20,
            ema_decay=0.98,
            precision="fp32",
            validate_every=steps,
        ),
        validation=ValidationConfig(num_cells=8),
        output_dir=str(folder / "run"),
    )
    config = replace(config, tokenizer=replace(config.tokenizer, num_tokens=16))
    checkpoint = load_checkpoint(train_to_the_end(config, make_accelerator(), RunProgress(steps, show=False)))
    cells = read_shards(shards, "heldout", checkpoint.vocabulary, most=10_000)
    decile_positions = RATIO * NUM_GENES / 10 * cells.counts.shape[0]
    assert 0.5 / decile_positions**0.5 < WORST_NOISE
    scores = score_inpainting(
        HeldOutCells(cells.counts, cells.places),
        checkpoint.tokenizer,
        [RATIO],
        model=ModelPredictor(lambda *arguments: checkpoint.model(*arguments).logits, checkpoint.tokenizer),
        calibrated=False,
    )
    return scores.scores[RATIO][MODEL].zero_rates()


@pytest.mark.slow
def test_zero_rates_are_calibrated_over_the_panel_and_in_each_decile_of_expression(shards: ShardFolder, tmp_path: Path):
    predicted, observed = zero_rates(shards, tmp_path, "detection", steps=800)
    assert observed[0] > 0.95  # the deciles differ
    assert observed[-1] < 0.25
    np.testing.assert_allclose(predicted, observed, atol=0.01)
    assert predicted.mean() == pytest.approx(observed.mean(), abs=0.01)


@pytest.mark.slow
def test_the_expressed_only_draw_is_not_calibrated(shards: ShardFolder, tmp_path: Path):
    """A model that is shown expressed genes alone learns that zeros are rare."""
    predicted, observed = zero_rates(shards, tmp_path, "expressed", steps=100)
    assert abs(predicted.mean() - observed.mean()) > 0.05
    assert np.abs(predicted - observed).max() > 0.05
