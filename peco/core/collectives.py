"""Collectives (sum, mean, gather, broadcast) as model code gets them: callables, and their single-process version."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Collective = Callable[[Tensor], Tensor]


def identity(tensor: Tensor) -> Tensor:
    """Every collective of a single process."""
    return tensor
