"""Where tensors are computed: `cuda` where there is a GPU and PECO_DEVICE is not `cpu`, else the CPU."""

from __future__ import annotations

import torch

from peco.core.environment import DEVICE
from peco.core.errors import PecoError

CPU = torch.device("cpu")


def uses_cuda() -> bool:
    """Whether this process computes on a GPU.

    Raises:
        PecoError: PECO_DEVICE is neither `cpu` nor `cuda`.
    """
    wished = DEVICE.text() or ("cuda" if torch.cuda.is_available() else "cpu")
    if wished not in ("cpu", "cuda"):
        raise PecoError(f"PECO_DEVICE: {wished!r} is not allowed; expected cpu or cuda")
    return wished == "cuda"


def choose(local_rank: int = 0) -> torch.device:
    """The device of process `local_rank` of this machine.

    Raises:
        PecoError: there are fewer GPUs than processes, or PECO_DEVICE asks for what isn't there.
    """
    if not uses_cuda():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise PecoError(
            f"process {local_rank} of this machine has no GPU ({torch.cuda.device_count()} found): "
            "start at most one process a GPU, or set PECO_DEVICE=cpu"
        )
    return torch.device("cuda", local_rank)
