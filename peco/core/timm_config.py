"""Checks of the config of a timm model's folder, before timm builds the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.core.parsing import shown

_MOST_PIXELS = 8192  # a side of an input
_LARGEST = 1e6  # of a mean or standard deviation


def check_timm_config(config: Mapping[str, Any], path: Path) -> None:
    """Check that the entries that are read have the right types.

    Args:
        config: content of config.json.
        path: of it, for messages.

    Raises:
        PecoError: it doesn't describe a timm model.
    """
    if not {"architecture", "pretrained_cfg"} <= set(config):
        raise PecoError(
            f"{path.parent}: not the folder of a timm model; give the folder of a backbone or of a perceptual network"
        )
    entries = config["pretrained_cfg"] if isinstance(config["pretrained_cfg"], dict) else {}
    for name, value, fits, expected in (
        ("architecture", config["architecture"], lambda v: isinstance(v, str), "the name of a timm model"),
        ("model_args", config.get("model_args", {}), lambda v: isinstance(v, dict), "arguments by name"),
        ("num_classes", config.get("num_classes", 0), lambda v: type(v) is int and v >= 0, "a whole number"),
        ("input_size", entries.get("input_size"), _is_input_size, "3, side, side"),
        ("mean", entries.get("mean"), _is_three_numbers, "three numbers"),
        ("std", entries.get("std"), lambda v: _is_three_numbers(v) and min(v) > 0, "three numbers over 0"),
    ):
        if not fits(value):
            raise PecoError(f"{path}: {name} is {shown(value)}; expected {expected}: fetch or make the folder again")
    side = entries["input_size"][1]
    built = config.get("model_args", {}).get("img_size", side)
    if "peco" in config and built != side:  # timm itself keeps the size of the architecture
        raise PecoError(
            f"{path}: input_size has {side} pixels, img_size is {shown(built)}; expected the same: fetch or make the folder again"
        )


def _is_input_size(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(side) is int for side in value)
    return whole and len(value) == 3 and value[0] == 3 and value[1] == value[2] and 0 < value[1] <= _MOST_PIXELS


def _is_three_numbers(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(number) in (int, float) for number in value)
    return numbers and len(value) == 3 and all(abs(number) <= _LARGEST for number in value)  # False for NaN
