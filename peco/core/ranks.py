"""The place of this process among those of its job, as torchrun describes it."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Variables of torchrun's processes. Those of another job, such as a pod of PyTorchJob or a shell on a cluster, mean nothing here.
PREFIXES = ("PET_", "TORCHELASTIC_")
NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)


@dataclass(frozen=True)
class Ranks:
    """Numbers of a process and of all processes."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1


def ranks() -> Ranks:
    """RANK, LOCAL_RANK and WORLD_SIZE of a process that torchrun started; without torchrun, one process alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    return Ranks(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def is_of_torchrun(name: str) -> bool:
    """True for an environment variable by which torchrun describes a job to its processes, or takes its own options."""
    return name in NAMES or name.startswith(PREFIXES)
