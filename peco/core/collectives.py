"""What model code knows of several processes: collectives (sum, mean, gather, broadcast) are handed to it as callables."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Collective = Callable[[Tensor], Tensor]


def identity(tensor: Tensor) -> Tensor:
    """Any collective of a single process."""
    return tensor
