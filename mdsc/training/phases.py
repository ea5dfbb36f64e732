"""Which weights a phase of training moves, and a model that is prepared for that phase.

For the first `train.pathway_steps` steps the blocks of the network are left out of the forward pass. Data-parallel
training must know beforehand which weights get a gradient; searching the graph for them at every step
(`find_unused_parameters`) would make all of training pay for its beginning. So the weights that a phase does not use
are found once, by a backward pass through a few cells, and frozen while it lasts.

Sharded models need none of it: their blocks sum their own gradients, and one that is not used has none. But each must
have been whole once before gradients are accumulated (torch 2.13 fails on a block that no forward pass has used
yet).
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mdsc.training.sharding import is_sharded, make_whole_once


def prepare_phase(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[nn.Module], Tensor],
) -> nn.Module:
    """Freeze the weights of `model` that `loss_of(model)` does not depend on, and wrap it for several processes.

    The optimiser leaves frozen weights and their moments alone, because they have no gradient.
    """
    if is_sharded(model):
        with torch.no_grad():
            loss_of(model)  # torch sets up the whole tree in the first forward pass
        make_whole_once(model)
        return model
    model.requires_grad_(True)
    optimizer.zero_grad()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    # An earlier phase's wrapper keeps its hooks on the weights for as long as accelerate refers to it.
    accelerator.free_memory()
    wrapped = accelerator.prepare_model(model)
    if wrapped is not model:
        # After its first backward pass DDP lays out its buckets anew, and with them the order in which three processes
        # or more are summed. Here it comes before the phase's first step, in a resumed run as in an unbroken one.
        loss_of(wrapped).backward()
        optimizer.zero_grad()
    return wrapped
