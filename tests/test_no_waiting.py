"""No operation of a training step makes the host wait for the device: seen on a CPU by the operators that would."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, tiny_shards, tiny_trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mdsc.config.schema import TokenizerConfig
from mdsc.data import cell_ranks

WAITING = {
    "_local_scalar_dense",  # item(), tolist(), bool()
    "_linalg_check_errors",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
}
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Wait where they are given a mask: its ones must be counted."""


class WaitingOperators(TorchDispatchMode):
    """Lists the operators of the block that wait."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        has_mask = name in BY_MASK and any(index is not None and index.dtype == torch.bool for index in args[1])
        is_sent = name == "lift_fresh" and args[0].ndim > 0  # torch.tensor([...]); a scalar stays on the host
        if name in WAITING or has_mask or is_sent:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are ranked in the way that does not wait."""
    monkeypatch.setattr(cell_ranks, "_sorts", lambda counts: True)


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
@pytest.mark.parametrize(("pathway_steps", "backbone"), [(0, "dit"), (2, "dit"), (0, "latent")])
def test_a_training_step_never_waits_for_the_device(
    tmp_path: Path, as_on_a_gpu: None, pathway_steps: int, backbone: str, tokenizer: str
):
    tiny_shards(tmp_path)
    config = tiny_config(tmp_path, pathway_steps=pathway_steps, batch_size=8)
    model = replace(config.model, backbone=backbone, dropout=0.1)
    config = replace(config, tokenizer=TokenizerConfig(name=tokenizer), model=model)
    trainer, loader = tiny_trainer(config)
    batches = loader.iterate()
    trainer.step(0, next(batches))  # a phase begins with a search that may wait
    batch = next(batches)
    with WaitingOperators() as operators:
        trainer.step(1, batch)
    assert not operators.found


def test_what_waits_is_found():
    with WaitingOperators() as operators:
        values = torch.arange(4.0)
        values.sum().item()
        values[values > 1]
        torch.linalg.cholesky(torch.eye(2))
        values[torch.arange(2)] + torch.tensor(1.0)
        torch.tensor([1, 2])
    assert operators.found == ["_local_scalar_dense", "index", "_linalg_check_errors", "lift_fresh"]


@pytest.mark.parametrize("rank", [cell_ranks.dense_ranks, cell_ranks.counts_below])
@pytest.mark.parametrize("largest", [0, 1, 5, 3_000_000])
def test_sorted_counts_have_the_ranks_of_the_table(
    monkeypatch: pytest.MonkeyPatch, rank: Callable[[Tensor], Tensor], largest: int
):
    draw = partial(torch.randint, size=(50, 12), generator=torch.Generator().manual_seed(largest))
    counts = draw(0, largest + 1) * draw(0, 2)
    counts[0] = largest
    views = (counts, counts[:, ::2], counts[:0])
    by_table = [rank(view) for view in views]
    monkeypatch.setattr(cell_ranks, "_sorts", lambda counts: True)
    for view, expected in zip(views, by_table, strict=True):
        assert torch.equal(rank(view), expected)
