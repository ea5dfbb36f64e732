"""How the global batch is shared out: over processes, and over micro-batches of one process."""

from mdsc.config.schema import OptimConfig
from mdsc.errors import UserError


def micro_batch_size(config: OptimConfig, num_processes: int) -> int:
    """Cells that a process takes at once, so that `global_batch_size` is reached by equal shares; "auto": at most.

    The number of accumulated micro-batches follows: global_batch_size / (num_processes * this).
    """
    share, rest = divmod(config.global_batch_size, num_processes)
    if rest or not share:
        raise UserError(
            f"--train.global-batch-size {config.global_batch_size} is no multiple of the {num_processes} processes; "
            f"give {max(share, 1) * num_processes}, or launch another number of processes."
        )
    if config.batch_size in (None, "auto"):
        return share
    if config.batch_size < 1:
        raise UserError(f"--train.batch-size is {config.batch_size}; give 1 or more, or auto.")
    if share % config.batch_size:
        fitting = max(
            (size for size in range(1, share + 1) if share % size == 0 and size <= config.batch_size), default=1
        )
        raise UserError(
            f"--train.batch-size {config.batch_size} does not divide the {share} cells of a process "
            f"(global batch {config.global_batch_size}, {num_processes} processes); give {fitting}, for example."
        )
    return config.batch_size
