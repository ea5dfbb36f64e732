"""One model over many processes: a copy on each (DDP), or a shard of every weight on each (FSDP2).

Which of the two is accelerate's to say (`accelerate launch --config_file configs/accelerate/fsdp2.yaml`). It starts the
processes; the sharding is torch's `fully_shard`, since accelerate's own way to it refuses CPUs, and what is tested on
two CPUs is thereby what runs on GPUs (docs/decisions/0008-sharding.md).
"""

import os
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mdsc.errors import UserError


def make_accelerator() -> Accelerator:
    """Give the accelerator of a run: CUDA devices where there are any, else the CPU."""
    _refuse_what_is_not_done()
    number = torch.cuda.device_count()
    if 0 < number <= int(os.environ.get("LOCAL_RANK", "0")):
        raise UserError(
            f"accelerate started more processes than this machine has GPUs ({number}): give accelerate launch "
            f"--num_processes {number}, times the number of machines."
        )
    # No TF32, whatever the environment says: likelihoods are what this is about, and bf16 autocast is the way to speed.
    torch.set_float32_matmul_precision("highest")
    wrapper = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # Apple's GPUs lack float64, which the keyed draws need.
    # Precision is `train.precision`, whatever the launcher's --mixed_precision: the head stays in float32.
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[wrapper])


def asked_for_sharding() -> FullyShardedDataParallelPlugin | None:
    """What accelerate's launcher was told of FSDP, or None. UserError for what is not done here."""
    if not _is_true("ACCELERATE_USE_FSDP") or not torch.distributed.is_initialized():
        return None
    _refuse_what_is_not_done()
    return FullyShardedDataParallelPlugin()


def _refuse_what_is_not_done() -> None:
    if not _is_true("ACCELERATE_USE_FSDP"):
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("accelerate was told fsdp_version 1: give 2, as configs/accelerate/fsdp2.yaml does.")
    if _is_true("FSDP_OFFLOAD_PARAMS"):
        raise UserError("accelerate was told fsdp_offload_params: leave it out; --train.ema-device cpu saves some.")
    if _is_true("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError(
            "accelerate was told fsdp_activation_checkpointing: give --train.gradient-checkpointing instead."
        )


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def place(model: nn.Module, accelerator: Accelerator, *, in_bf16: bool) -> nn.Module:
    """Bring the model to this process's device, with the main process's weights and buffers; sharded, if asked for.

    A process with a shard never has the whole model on its device: the blocks (`_no_split_modules`) come one by one,
    and what is outside of them last. Weights stay float32, and so do sums over processes. `in_bf16` is whether autocast
    will compute in bf16.
    """
    plugin = asked_for_sharding()
    if plugin is None:
        _take_from_main(model, accelerator)
        return model
    _require_averages(accelerator)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in [module for module in model.modules() if type(module).__name__ in model._no_split_modules]:
        _take_from_main(block, accelerator)
        # Autocast would make the bf16 weights of all blocks anew and keep them for the backward pass. The shards are
        # rounded before they are sent instead: the same numbers to the bit, half the bytes, and none are kept.
        is_rounded = in_bf16 and _has_linear_weights_alone(block)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_rounded else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=plugin.reshard_after_forward)
    _take_from_main(model, accelerator)
    # What is outside of the blocks is needed first in the backward pass: to drop it before would be in vain.
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _require_averages(accelerator: Accelerator) -> None:
    """UserError where gradients would be summed: gloo of torch 2.7 takes a mean for a sum, and says nothing."""
    if accelerator.num_processes > 1:
        mean = torch.zeros(1, device=accelerator.device)
        ones = torch.ones(accelerator.num_processes, device=accelerator.device)
        # Newer torch warns of the name that older ones know.
        newer = getattr(torch.distributed, "reduce_scatter_single", None)
        (newer or torch.distributed.reduce_scatter_tensor)(mean, ones, op=torch.distributed.ReduceOp.AVG)
        if mean != 1:
            raise UserError(
                f"FSDP2 on {accelerator.device.type} needs newer torch than {torch.__version__}, which cannot average "
                "gradients: take torch 2.13, or configs/accelerate/ddp.yaml."
            )


def _take_from_main(module: nn.Module, accelerator: Accelerator) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(accelerator.device)
            broadcast(tensor.data)


def _has_linear_weights_alone(module: nn.Module) -> bool:
    """Whether autocast rounds all weights."""
    owners = [part for part in module.modules() if list(part.parameters(recurse=False))]
    return all(isinstance(part, nn.Linear) for part in owners)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def without_sync(model: nn.Module) -> AbstractContextManager:
    """Gradients of the backward passes within stay on their process, to be summed in the next one without."""
    if is_sharded(model):
        return _fsdp_without_sync(model)
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


@contextmanager
def _fsdp_without_sync(model: FSDPModule):
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def reshard(model: nn.Module) -> None:
    """Drop the whole weights that a forward pass has left and no backward pass has ended.

    Else the next forward pass would take them for the weights, whatever has become of the shards.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def make_whole_once(model: nn.Module) -> None:
    """Gather each block and the root, one after the other, and drop them again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """The part of a weight that this process has, without a gradient; all of it, where nothing is sharded."""
    data = tensor.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def whole(tensor: Tensor, part: Tensor | None = None) -> Tensor:
    """All of a tensor, on the device of every process. To be called on all of them.

    `part`, if given, is what this process has of another tensor that is sharded alike; it may lie in host memory.
    """
    data = tensor.detach()
    if not isinstance(data, DTensor):
        return data if part is None else part
    if part is not None:
        part = part.to(data.device)
        data = DTensor.from_local(
            part, data.device_mesh, data.placements, run_check=False, shape=data.shape, stride=data.stride()
        )
    return data.full_tensor()


def give(tensor: Tensor, value: Tensor | None, part: Tensor | None = None) -> None:
    """Set a tensor on all processes to `value`, which only the main one has; each keeps what is its part of it.

    With `part`, that is set in the place of the tensor's own.
    """
    data = tensor.detach()
    part = own_part(data) if part is None else part
    if value is None:
        value = torch.empty(data.shape, dtype=data.dtype, device=data.device)
    value = value.to(data.device)
    if isinstance(data, DTensor):
        part.copy_(distribute_tensor(value, data.device_mesh, data.placements).to_local())
    else:
        broadcast(value)
        part.copy_(value)
