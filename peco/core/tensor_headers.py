"""Headers of safetensors files: names and shapes of the tensors, compared with those of a model before it takes memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors

from peco.core.errors import PecoError

Shapes = Mapping[str, Sequence[int]]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by its name.

    Raises:
        OSError, safetensors.SafetensorError: the file is missing or damaged.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def require_equal(want: Shapes, found: Shapes, origin: str | Path) -> None:
    """Check that a file has the tensors of a model and no others, in equal shapes.

    Raises:
        PecoError: a tensor differs; names `origin` and the first such tensor.
    """
    remedy = "it was made with other parameters: make it again"
    for names, what in ((want.keys() - found.keys(), "lacks"), (found.keys() - want.keys(), "has")):
        if names:
            tensor = f"{what} the tensor {min(names)}" + (", unknown to the model" if what == "has" else "")
            raise PecoError(f"{origin}: {tensor} ({len(names)} such in all); {remedy}")
    for name, shape in found.items():
        if tuple(shape) != tuple(want[name]):
            raise PecoError(f"{origin}: {name} has shape {tuple(shape)}, the model needs {tuple(want[name])}; {remedy}")


def require_possible(sizes: Any, found: Shapes, origin: str | Path) -> None:
    """Refuse sizes of a model that is larger than its file: to build it would take all time or memory.

    Args:
        sizes: plain data with the sizes, in any nesting.
        found: shapes of the file.
        origin: file of the sizes, for messages.

    Raises:
        PecoError: a whole number is larger than every side of every tensor and than their number.
    """
    most = max((len(found), 1024, *(side for shape in found.values() for side in shape)))
    for key, value in _integers(sizes):
        if abs(value) > most:
            raise PecoError(f"{origin}: {key} {value} is more than its weights have; fetch or make the folder again")


def _integers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in plain data, each with its dotted key."""
    if isinstance(values, int) and not isinstance(values, bool):
        yield key, values
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        yield from _integers(value, f"{key}.{name}" if key else str(name))
