"""Lets `accelerate launch --cpu --num_processes N` have its N processes.

For CPUs without MPI accelerate starts one process, whatever the number that was asked for (accelerate 1.15,
`simple_launcher`; huggingface/accelerate#2741). All that tells this process so is a MASTER_PORT without a WORLD_SIZE;
the number stands on the command line of its parent. torch's launcher then starts the N, where accelerate finds itself.
"""

import os
import re
import sys

import psutil


def start_missing_processes() -> None:
    """Replace this process by torch's launcher of N processes, if accelerate was asked for N > 1 and started one."""
    is_alone = "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ
    if is_alone and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        number = asked_for(psutil.Process().parent().cmdline())
        if number > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
            os.execv(sys.executable, [sys.executable, *launcher, *sys.orig_argv[1:]])


def asked_for(launcher: list[str]) -> int:
    """Give the N of `--num_processes N` on accelerate's command line; 1 where there is none."""
    found = re.search(r"\0--num[_-]processes[=\0](\d+)", "\0".join(launcher))
    return int(found[1]) if found and "launch" in launcher else 1
