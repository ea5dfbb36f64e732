"""Compiled training beside eager training; for a process of its own, as checks of shapes break a compiler's graphs.

python tests/compiled_runs.py FOLDER
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo
from tiny_run import tiny_config, tiny_shards, tiny_trainer

from mdsc.config.schema import TrainConfig


def compare(config: TrainConfig) -> dict:
    """Largest differences between an eager and a compiled run, and how often something was compiled."""
    found = {}
    for wanted in (False, True):
        trainer, loader = tiny_trainer(replace(config, train=replace(config.train, compile=wanted)))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        losses, step = [], trainer.task.losses

        def told(*arguments, losses=losses, step=step):
            values = step(*arguments)
            losses.append(values["loss"].detach())
            return values

        trainer.task.losses = told
        trainer.run(loader.iterate(), save=lambda done: None)
        counters = torch._dynamo.utils.counters
        found[wanted] = (torch.cat(losses), [*trainer.parameters], list(trainer.model.state_dict()), trainer)
    losses, weights, names = zip(*(found[wanted][:3] for wanted in (False, True)), strict=True)
    trainer = found[True][3]
    return {
        "loss": (losses[0] - losses[1]).abs().max().item(),
        "weight": max((one - other).abs().max().item() for one, other in zip(*weights, strict=True)),
        "names": names[0] == names[1],
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
        "validation": [t.last_validation["score"] for t in (found[False][3], trainer)],
    }


def main(folder: Path) -> None:
    tiny_shards(folder)
    some = tiny_config(folder, max_steps=6, pathway_steps=2, batch_size=8, validate_every=3)
    dropping = replace(some, model=replace(some.model, num_layers=2, dropout=0.3, state_dropout=0.2))
    recomputing = replace(some, train=replace(some.train, gradient_checkpointing=True))
    eager = replace(recomputing, model=replace(some.model, attention="eager"))
    print(json.dumps({"dropping": compare(dropping), "recomputing, attention eager": compare(eager)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
