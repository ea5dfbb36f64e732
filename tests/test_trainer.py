"""The training loop: the same numbers for any share and accumulation, guarded, in two phases, and it learns."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, tiny_shards, tiny_trainer, with_train

from mdsc.config.schema import OptimConfig, TrainConfig
from mdsc.data.folds import NUM_FOLDS
from mdsc.errors import UserError
from mdsc.training.finite_guard import PATIENCE
from mdsc.training.precision import uses_bf16
from mdsc.training.step_averages import CLOCKED
from mdsc.training.tracking import Tracker, read_metrics
from mdsc.training.trainer import Trainer
from mdsc.training.validation import validate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    tiny_shards(folder)
    return folder


def metrics_of(config: TrainConfig) -> list[dict]:
    with Tracker(config) as tracker:
        trainer, loader = tiny_trainer(config, tracker=tracker)
        trainer.run(loader.iterate(), save=lambda done: None)
    return read_metrics(config.output_dir)


def assert_same(one: list[dict], other: list[dict], rel: float) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - CLOCKED:
            assert mine[name] == pytest.approx(theirs[name], rel=rel, abs=1e-12), (mine["step"], name)


def test_accumulation_changes_nothing(folder: Path):
    config = tiny_config(folder, pathway_steps=2)
    config = replace(config, model=replace(config.model, dropout=0.3, state_dropout=0.3))
    assert_same(metrics_of(config), metrics_of(with_train(config, batch_size=4)), rel=1e-5)


def test_a_run_repeats_itself_to_the_bit(folder: Path):
    config = tiny_config(folder, max_steps=3)
    assert_same(metrics_of(config), metrics_of(config), rel=0)


def test_it_learns(folder: Path):
    config = tiny_config(folder, max_steps=60, pathway_steps=20, log_every=20, validate_every=30, ema_decay=0.9)
    scores = [line["validation_nll"] for line in metrics_of(config) if "validation_nll" in line]
    assert len(scores) == 3
    assert scores[-1] < scores[0] - 0.02, scores


@pytest.mark.parametrize("form", ["fixed_k", "continuous"])
@pytest.mark.parametrize("ordinal", ["mean_matching", "crps", "none"])
def test_every_objective_trains(folder: Path, form: str, ordinal: str):
    config = tiny_config(folder, max_steps=2)
    config = replace(config, objective=replace(config.objective, form=form, ordinal=ordinal))
    losses = [line for line in metrics_of(config) if "loss" in line]
    expected = config.objective.ordinal_weight * losses[-1]["ordinal"] + losses[-1]["nll"]
    assert losses[-1]["loss"] == pytest.approx(expected, rel=1e-5)
    assert losses[-1]["skipped_steps"] == 0


def test_the_pathway_phase_leaves_the_blocks_and_their_moments_alone(folder: Path):
    trainer, loader = tiny_trainer(tiny_config(folder, pathway_steps=2))
    model = trainer.model
    blocks = dict(model.blocks.named_parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    batches = loader.iterate()
    for step in range(2):
        trainer.step(step, next(batches))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "cell_state.gene_in.weight" in moved
    assert not {name for name in moved if name.startswith(("blocks", "final", "gene_embedding", "token_embedding"))}
    assert not any(parameter in trainer.optimizer.state for parameter in blocks.values())

    trainer.step(2, next(batches))
    assert all(parameter in trainer.optimizer.state for parameter in blocks.values())
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter in trainer.optimizer.state)
    state = trainer.optimizer.state
    assert {state[parameter]["step"].item() for parameter in blocks.values()} == {1.0}
    assert state[model.cell_state.gene_in.weight]["step"].item() == 3.0


def spoil(trainer: Trainer, steps: set[int]) -> None:
    """Make the loss NaN at these steps."""
    losses = trainer.task.losses

    def spoiled(model, step, cells):
        values = losses(model, step, cells)
        return {name: value * torch.nan if step in steps else value for name, value in values.items()}

    trainer.task.losses = spoiled


def spoil_gradient(trainer: Trainer, steps: set[int]) -> None:
    """Make one gradient infinite at these steps; the loss stays finite."""
    step_of = trainer.step

    def step(number, batch):
        parameter = trainer.model.cell_state.gene_in.weight
        handle = parameter.register_hook(lambda gradient: gradient * torch.inf if number in steps else None)
        step_of(number, batch)
        handle.remove()

    trainer.step = step


@pytest.mark.parametrize("spoil_step", [spoil, spoil_gradient])
def test_what_is_not_finite_changes_no_weight(folder: Path, spoil_step):
    trainer, loader = tiny_trainer(tiny_config(folder, max_steps=4))
    spoil_step(trainer, {1})
    batches = loader.iterate()
    trainer.step(0, next(batches))
    before = [parameter.clone() for parameter in trainer.parameters]
    trainer.step(1, next(batches))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(trainer.parameters, before, strict=True))
    trainer._hear()
    assert trainer.guard.skipped == 1
    trainer.step(2, next(batches))
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(trainer.parameters, before, strict=True))
    assert all(math.isfinite(value) for value in trainer.averages.take().values())
    assert all(trainer.ema.whole(name).isfinite().all() for name in trainer.ema.names())


def test_a_run_that_is_never_finite_stops(folder: Path):
    config = tiny_config(folder, max_steps=3 * PATIENCE, log_every=100)
    trainer, loader = tiny_trainer(config)
    spoil(trainer, set(range(100)))
    with pytest.raises(UserError, match=f"stopped at step {PATIENCE}"):
        trainer.run(loader.iterate(), save=lambda done: None)


def test_saving_and_logging_come_at_their_steps_and_at_the_end(folder: Path):
    config = tiny_config(folder, max_steps=5, save_every=2, log_every=3, validate_every=4)
    saved = []
    with Tracker(config) as tracker:
        trainer, loader = tiny_trainer(config, tracker=tracker)
        trainer.run(loader.iterate(), save=saved.append)
    assert saved == [2, 4, 5]
    lines = read_metrics(config.output_dir)
    assert [line["step"] for line in lines if "loss" in line] == [3, 5]
    assert [line["step"] for line in lines if "validation_nll" in line] == [0, 4, 5]


def test_validation_does_not_depend_on_its_batch_size(folder: Path):
    trainer, _ = tiny_trainer(tiny_config(folder))
    predict = lambda *inputs: trainer.model(*inputs).logits  # noqa: E731
    arguments = (predict, trainer.task.validation_cells, trainer.task.tokenizer, (0.2, 0.8))
    one, other = (validate(*arguments, batch_size=size) for size in (5, 24))
    assert list(one) == [0.2, 0.8]
    for ratio in one:
        assert one[ratio].accuracy == other[ratio].accuracy
        assert one[ratio].nll == pytest.approx(other[ratio].nll, rel=1e-6)


@pytest.mark.parametrize("pathway_steps", [0, 2])
def test_a_training_cell_is_read_without_its_fold_and_a_validation_cell_with_all(folder: Path, pathway_steps: int):
    trainer, loader = tiny_trainer(tiny_config(folder, pathway_steps=pathway_steps))
    batch, told = next(loader.iterate()), []
    assert len(trainer.model.gene_evidence.fold_loadings) == NUM_FOLDS
    trainer.model.gene_evidence.register_forward_pre_hook(lambda _, arguments: told.append(arguments[4]))
    trainer.step(0, batch)
    assert torch.equal(told[-1], batch.fold)
    assert (batch.fold > 0).all()
    told.clear()
    trainer._validate(1)
    assert told
    assert all(fold is None for fold in told)


def test_validation_scores_hidden_positions_alone(folder: Path):
    """A predictor that is sure of the truth where it sees it, and knows nothing elsewhere, scores log V."""
    trainer, _ = tiny_trainer(tiny_config(folder))
    num_tokens = trainer.task.tokenizer.num_tokens

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        seen = tokens < num_tokens
        return 100.0 * torch.nn.functional.one_hot(tokens.clamp(max=num_tokens - 1), num_tokens) * seen[..., None]

    scores = validate(predict, trainer.task.validation_cells, trainer.task.tokenizer, (0.5,), batch_size=8)
    assert scores[0.5].nll == pytest.approx(torch.tensor(float(num_tokens)).log().item(), rel=1e-6)


def test_bf16_trains_in_float32_weights(folder: Path):
    trainer, loader = tiny_trainer(tiny_config(folder, precision="bf16"))
    trainer.step(0, next(loader.iterate()))
    trainer._hear()
    assert trainer.guard.skipped == 0
    assert {parameter.dtype for parameter in trainer.parameters} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "computes", "expected"),
    [("auto", True, True), ("auto", False, False), ("fp32", True, False), ("bf16", False, True)],
)
def test_precision(monkeypatch, precision: str, computes: bool, expected: bool):
    monkeypatch.setattr("mdsc.training.precision.computes_bf16", lambda device: computes)
    assert uses_bf16(OptimConfig(precision=precision).precision, torch.device("cpu")) is expected
