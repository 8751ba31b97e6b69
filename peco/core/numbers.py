"""Rounded metrics, and evenly spaced indices."""

from __future__ import annotations

from typing import Any

import numpy as np


def rounded(values: Any) -> Any:
    """The same values with floats rounded to six significant digits, as in metric files."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 to `count` - 1, evenly spaced, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()))
