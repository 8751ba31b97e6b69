"""Checks of the range of a model's first batch: a wrong one raises no error by itself, and gives other results.

The tokenizer takes images in [0, 1], a backbone normalised ones; they are easily confused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peco.core.errors import PecoError

# Resampling overshoots at edges: values beyond a range by a quarter of it are no error.
_OVERSHOOT = 0.25


def require_unit_range(x_BCHW: Tensor) -> None:
    """Refuse a batch that can't be images in [0, 1].

    Raises:
        PecoError: its values are of another range.
    """
    low, high = (float(v) for v in torch.aminmax(x_BCHW))
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise PecoError(
            f"tokenizer: expected images in [0, 1], got values from {low:.3g} to {high:.3g}; "
            "divide bytes by 255, undo a normalisation (for 2 * x - 1: (x + 1) / 2)"
        )


def warn_of_unnormalized(model: nn.Module) -> None:
    """Let a timm model warn, at its first batch only, if the values can't be normalised images or look like [0, 1].

    The check is at its first layer, which all ways of calling the model share; a network that is cut holds the model.
    """
    cfg: Any = model.pretrained_cfg
    network = getattr(model, "model", model)
    first = dict(network.named_modules()).get(str(cfg.get("first_conv")))
    if first is not None:  # a network that is cut for features may have renamed it
        first.register_forward_pre_hook(_FirstBatch(cfg["mean"], cfg["std"]))


class _FirstBatch:
    """A forward hook that checks one batch and takes itself off."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        limits = [(v - m) / s for m, s in zip(mean, std, strict=True) for v in (0, 1)]
        self.low, self.high = min(limits), max(limits)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.compiler.is_compiling():
            return
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is self:
                del module._forward_pre_hooks[key]
        low, high = (float(v) for v in torch.aminmax(inputs[0].detach()))
        margin = _OVERSHOOT * (self.high - self.low)
        expected = f"values from {self.low:.3g} to {self.high:.3g} (pretrained_cfg: mean, std)"
        got = f"backbone: the first batch has values from {low:.3g} to {high:.3g}"
        if low < self.low - margin or high > self.high + margin:
            warnings.warn(f"{got}; it takes normalised images, with {expected}", stacklevel=2)
        elif low >= 0 and high <= 1 and self.low < -margin:
            warnings.warn(f"{got}, as of images in [0, 1]; it takes normalised ones, with {expected}", stacklevel=2)
