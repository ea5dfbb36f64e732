"""The `pooled` baseline: the model's own cell-state pathway alone, without evidence of genes and without attention.

It pools the visible genes into one state by the same learned factor model, from the same start, and reads that out by
the same low-rank head; it makes some ten times the steps in the same time. Trained by the run's own trainer and options
on the same training cells (those that the run kept for validation included), once for all mask ratios.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import scipy.sparse as sp

from mdsc.checkpoint import load_checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.data.genes import GeneVocabulary
from mdsc.data.shard_writer import ShardWriter
from mdsc.evaluation.inpaint import ModelPredictor
from mdsc.training.command import train_to_the_end
from mdsc.training.progress import RunProgress
from mdsc.training.sharding import make_accelerator

GENE_WEIGHT_DECAY = 0.2
"""Not the run's: beside the evidence of genes their vectors may decay far harder than suits the pathway alone. It does
better with 0.3 than with 1 or 3 on the demo's 580 cells, and with 0.1 than with 0.03 on 2,160."""


def fit_pooled(
    counts: sp.csr_matrix, vocabulary: GeneVocabulary, run: TrainConfig, *, max_steps: int
) -> ModelPredictor:
    """Train it on these cells (cells, genes of the vocabulary) for `max_steps` steps, warm-up and cosine included."""
    with TemporaryDirectory(prefix="mdsc-pooled-") as folder:
        shards = Path(folder) / "shards"
        with ShardWriter(shards, vocabulary) as writer:
            writer.write("train", counts, {}, [str(row) for row in range(counts.shape[0])])
        config = pooled_config(run, str(shards), f"{folder}/run", max_steps)
        checkpoint = load_checkpoint(train_to_the_end(config, make_accelerator(), RunProgress(max_steps, show=False)))

    def predict(gene_ids, tokens, counts, is_pad, *conditions):
        return checkpoint.model(gene_ids, tokens, counts, is_pad).logits

    return ModelPredictor(predict, checkpoint.tokenizer)


def pooled_config(run: TrainConfig, data_dir: str, output_dir: str, max_steps: int) -> TrainConfig:
    """The options of a run, with the pathway alone for a model, and only the schedule that suits it."""
    return replace(
        run,
        data=replace(run.data, dir=data_dir, condition_columns=(), condition_features=()),
        model=replace(run.model, num_layers=0, factor_size=0, attention="sdpa"),
        train=replace(
            run.train,
            max_steps=max_steps,
            learning_rate=run.train.pathway_learning_rate,
            pathway_steps=0,
            gene_weight_decay=GENE_WEIGHT_DECAY,
            batch_size=None,
            log_every=max_steps,
            validate_every=max_steps,
            save_every=max_steps,
        ),
        tracking=replace(run.tracking, wandb=False),
        output_dir=output_dir,
    )
