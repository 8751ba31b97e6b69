"""Parameter groups, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from peco.core.config import Optim
from peco.core.errors import PecoError


def lr_at(step: int, steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """Learning rate of step 0 <= `step` < `steps`: linear warm-up to `lr`, reached at `warmup_steps`, then a cosine to `min_lr`."""
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def param_groups(module: nn.Module, optim: Optim, below: nn.Module | None = None) -> list[dict[str, Any]]:
    """Parameter groups of AdamW over all trainable parameters of `module`.

    Biases, other parameters of at most one dimension, and those that a submodule names in timm's `no_weight_decay()` are not
    decayed. With `optim.layer_decay` < 1, the learning rate of submodules with timm's `group_matcher` falls geometrically from the
    last layer to the first (BEiT, arXiv 2106.08254); `lr_scale` of a group is its factor.

    Args:
        module: the module to train.
        optim: recipe.
        below: a backbone without a head of its own under other parts of `module`. timm takes its last block for the top of the
            model; here that is a layer below those parts.

    Raises:
        PecoError: `optim.layer_decay` < 1 and no trainable submodule can be divided into layers.
    """
    exempt = _no_weight_decay(module)
    plain = list(param_groups_weight_decay(module, optim.weight_decay, no_weight_decay_list=exempt))
    if optim.layer_decay == 1:
        return plain
    groups: list[dict[str, Any]] = []
    for prefix, layered in _layered(module):
        own = {name.removeprefix(prefix) for name in exempt if name.startswith(prefix)}
        groups += param_groups_layer_decay(
            layered, optim.weight_decay, no_weight_decay_list=own, layer_decay=optim.layer_decay
        )
    if not groups:
        raise PecoError(
            f"optim.layer_decay: {optim.layer_decay:g} is not allowed here; the model has no layers that timm can list, expected 1"
        )
    lower = {id(p) for p in below.parameters()} if below is not None else set()
    for group in groups:
        if id(group["params"][0]) in lower:
            group["lr_scale"] *= optim.layer_decay
    seen = {id(p) for group in groups for p in group["params"]}
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in seen]} for group in plain]
    return groups + [group for group in rest if group["params"]]


def _no_weight_decay(module: nn.Module) -> set[str]:
    """Full names (or patterns, as timm allows) of the parameters that submodules exempt from weight decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for name in part.no_weight_decay()
    }


def _layered(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The outermost trainable submodules with a `group_matcher`, each with its name and a dot."""
    if callable(getattr(module, "group_matcher", None)):
        return [(prefix, module)] if any(p.requires_grad for p in module.parameters()) else []
    return [found for name, child in module.named_children() for found in _layered(child, f"{prefix}{name}.")]


class Ema:
    """Exponential moving average of the trainable parameters.

    The weight of the past in update t is min(decay, (1 + t) / (10 + t)), so that a short training isn't dominated by its random
    start.

    Args:
        module: module whose parameters are averaged; the average starts as a copy of them.
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after optimizer step `step` (from 0) to the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self._mean

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, mean in self._mean.items():
            mean.copy_(state[name])

    def averaged(self, module: nn.Module) -> dict[str, Tensor]:
        """State dict of `module` with the averages in place of its trainable parameters."""
        return {**module.state_dict(), **self._mean}
