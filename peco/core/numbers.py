"""Rounding of metrics, and evenly spaced choices."""

from __future__ import annotations

from typing import Any

import numpy as np


def rounded(values: Any) -> Any:
    """The same values with floats at six significant digits, as metric files show them."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 to `count` - 1, evenly spread, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()))
