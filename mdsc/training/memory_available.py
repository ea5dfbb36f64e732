"""How much memory a process may still take: of its GPU, or its part of the host's, within the limits of a container."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_bytes(device: torch.device, local_processes: int = 1) -> int:
    """Bytes that are free on the device. The processes of a host have equal parts of its memory, and each a GPU."""
    if device.type == "cuda":
        # What torch holds and does not use is free for it, and for nobody else.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *cgroup_rooms()]) // local_processes


def cgroup_rooms(own: Path = OWN_CGROUPS, mount: Path = CGROUPS) -> Iterator[int]:
    """Bytes that each control group above this process has left: a container's limit is not in what psutil tells.

    Of version 2 and version 1. Cached files are given up when memory is wanted, and count as free.
    """
    names = {  # limit, use, and what of it is cached files that were not used lately
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in names:
            continue
        limit_name, use_name, cached_name = names[controllers]
        # A container may see its own group as the root, whatever its path says.
        for folder in (group := mount / controllers / path.lstrip("/"), *group.parents):
            try:
                limit, use = (folder / limit_name).read_text(), (folder / use_name).read_text()
                cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit.strip() != "max":
                yield max(int(limit) - int(use) + int(cached.get(cached_name, 0)), 0)
