"""Conditions that are left out while training: how often, which with which, and as a function of what."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_shards

from mdsc.config.schema import OptimConfig
from mdsc.data.batch import CellBatch
from mdsc.training.condition_dropout import drop_conditions

NUM_CELLS = 4000


def cells(number: int = NUM_CELLS, columns: tuple[str, ...] = ("drug", "type")) -> CellBatch:
    whole = torch.zeros(number, 3, dtype=torch.long)
    return CellBatch(
        gene_ids=whole,
        counts=whole.int(),
        tokens=whole,
        is_pad=whole.bool(),
        cell_index=torch.arange(number),
        fold=whole[:, 0],
        categories={name: torch.full((number,), place + 1) for place, name in enumerate(columns)},
    )


def vectors(number: int = NUM_CELLS) -> dict[str, torch.Tensor]:
    """Of every cell but each tenth."""
    table = torch.ones(number, 4)
    table[::10] = torch.nan
    return {"drug": table}


def options(**shares) -> OptimConfig:
    return OptimConfig(**({"condition_dropout": 0.0, "column_dropout": 0.0, "level_dropout": 0.0} | shares))


def near(share: float, number: int = NUM_CELLS):
    return pytest.approx(share, abs=4 * (share * (1 - share) / number) ** 0.5)


def test_all_conditions_of_a_cell_go_together_at_the_rate():
    told = drop_conditions(cells(), vectors(), options(condition_dropout=0.3), seed=0, step=5)
    is_gone = told.categories["drug"] == 0
    assert is_gone.double().mean().item() == near(0.3)
    assert torch.equal(is_gone, told.categories["type"] == 0)
    has_vector = ~vectors()["drug"].isnan().any(dim=1)
    assert torch.equal(told.vectors["drug"].isnan().any(dim=1), is_gone | ~has_vector)
    assert torch.equal(told.categories["drug"][~is_gone], cells().categories["drug"][~is_gone])


def test_columns_go_independently_of_each_other():
    told = drop_conditions(cells(), {}, options(column_dropout=0.4), seed=0, step=5)
    drug, kind = (told.categories[name] == 0 for name in ("drug", "type"))
    assert drug.double().mean().item() == near(0.4)
    assert kind.double().mean().item() == near(0.4)
    assert (drug & kind).double().mean().item() == near(0.16)


def test_a_column_by_itself_goes_with_all_or_not_at_all():
    told = drop_conditions(cells(columns=("drug",)), {}, options(column_dropout=0.4), seed=0, step=5)
    assert (told.categories["drug"] > 0).all()


def test_a_level_goes_and_leaves_its_vector_but_stays_where_there_is_none():
    told = drop_conditions(cells(), vectors(), options(level_dropout=0.5), seed=0, step=5)
    is_gone = told.categories["drug"] == 0
    has_vector = ~vectors()["drug"].isnan().any(dim=1)
    assert is_gone[has_vector].double().mean().item() == near(0.5)
    assert not is_gone[~has_vector].any(), "it would be told nothing"
    assert torch.equal(told.vectors["drug"][has_vector], vectors()["drug"][has_vector])
    assert (told.categories["type"] > 0).all(), "it has no vectors"


def test_levels_and_columns_of_two_conditions_go_independently():
    tables = {"drug": torch.ones(NUM_CELLS, 4), "type": torch.ones(NUM_CELLS, 2)}
    told = drop_conditions(cells(), tables, options(column_dropout=0.4, level_dropout=0.5), seed=0, step=5)
    columns = [told.vectors[name].isnan().any(dim=1) for name in ("drug", "type")]
    levels = [told.categories[name] == 0 for name in ("drug", "type")]
    assert (columns[0] & columns[1]).double().mean().item() == near(0.16)
    assert (levels[0] & levels[1]).double().mean().item() == near(0.7**2)  # lost with the column, or by itself
    for one, other in ((0, 1), (1, 0)):
        assert (levels[one] & columns[other]).double().mean().item() == near(0.7 * 0.4)
        assert (levels[one] & ~columns[one]).double().mean().item() == near(0.6 * 0.5)


def test_it_is_a_function_of_seed_step_and_cell():
    shares = options(condition_dropout=0.3, column_dropout=0.3, level_dropout=0.3)

    def dropped(batch: CellBatch, table: dict, *, seed: int = 0, step: int = 0) -> np.ndarray:
        told = drop_conditions(batch, table, shares, seed=seed, step=step)
        return torch.stack([*(told.categories[name] for name in ("drug", "type")), told.vectors["drug"][:, 0]]).numpy()

    whole = dropped(cells(64), vectors(64))
    edges = [0, 5, 40, 64]
    parts = [
        dropped(cells(64).select(slice(*part)), {"drug": vectors(64)["drug"][slice(*part)]}) for part in pairwise(edges)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    for other in ({"seed": 1}, {"step": 1}):
        assert not np.array_equal(dropped(cells(64), vectors(64), **other), whole, equal_nan=True)


def test_nothing_else_of_a_cell_changes():
    batch = cells(32)
    told = drop_conditions(batch, vectors(32), options(condition_dropout=0.9), seed=0, step=0)
    for name in ("gene_ids", "counts", "tokens", "is_pad", "cell_index", "fold"):
        assert getattr(told, name) is getattr(batch, name)
    plain = replace(batch, categories={})
    assert drop_conditions(plain, {}, options(condition_dropout=0.9), seed=0, step=0) is plain


def test_training_drops_and_validation_does_not(tmp_path):
    """The categories that reach the network, in steps and in validations of a run."""
    from accelerate import Accelerator

    from mdsc.data.condition_levels import condition_levels
    from mdsc.data.loader import CellLoader
    from mdsc.data.shard_statistics import shard_statistics
    from mdsc.data.tokenizers import make_tokenizer
    from mdsc.model.initialisation import build_model
    from mdsc.training.masked_task import MaskedTask
    from mdsc.training.progress import RunProgress
    from mdsc.training.trainer import Trainer

    folder = tiny_shards(tmp_path)
    config = tiny_config(tmp_path, max_steps=3, validate_every=10, condition_dropout=0.5)
    levels, tokenizer = condition_levels(folder, ["drug"]), make_tokenizer("rank")
    statistics = shard_statistics(folder, tokenizer, rank=8, validation_fraction=config.data.validation_fraction)
    loader = CellLoader(folder, tokenizer, config.data, seed=0, global_batch_size=16, levels=levels)
    model = build_model(config.model, tokenizer, statistics, levels)
    validation_cells = loader.validation_batch(24)
    accelerator = Accelerator(cpu=True)
    tokenizer = tokenizer.with_values(statistics.token_mean_count)
    task = MaskedTask(config, accelerator, model, tokenizer, validation_cells)
    trainer = Trainer(config, accelerator, model, task, progress=RunProgress(3, show=False))
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    model.conditions.register_forward_pre_hook(lambda part, inputs: seen[part.training].append(inputs[0]["drug"]))
    batches = loader.iterate()
    trainer.run(batches, save=lambda done: None)
    # Each tenth simulated cell has no drug.
    in_steps, in_validations = (torch.cat(seen[training]) for training in (True, False))
    assert (in_steps == 0).double().mean() > 0.35
    expected = (validation_cells.categories["drug"] == 0).double().mean()
    assert (in_validations == 0).double().mean() == expected < 0.3
