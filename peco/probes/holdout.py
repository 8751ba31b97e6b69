"""What an evaluation is fitted, chosen and scored on, and whether it can be done at all."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from peco.core.errors import PecoError


class Labeled(Protocol):
    """The part of a split that matters here; `peco.data.shards.ShardSet` has it."""

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,), indices into `classes`; -1 where a sample has none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""


def holdout_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Divide train into a part to fit on and a part to choose on, so that val serves for nothing but the score.

    The holdout is the end of the split in shard order, which was shuffled when the shards were written. Shards that are streamed
    keep their order: where the end lacks classes that evenly spaced samples have, these are the holdout.

    Args:
        labels: int64 (n,), those of train.
        fraction: share of the holdout; at least one sample goes to each part.

    Returns:
        int64 indices of the two parts.

    Raises:
        PecoError: fewer than 2 samples.
    """
    n = len(labels)
    if n < 2:
        raise PecoError(f"train has {n} sample(s); evaluation needs at least 2: give more images")
    held = min(max(round(n * fraction), 1), n - 1)
    end, spaced = np.arange(n - held, n), np.arange(held) * n // held
    chosen = end if len(np.unique(labels[end])) >= len(np.unique(labels[spaced])) else spaced
    return np.setdiff1d(np.arange(n), chosen), chosen


def why_skipped(train: Labeled, val: Labeled) -> str | None:
    """The reason why a labelled evaluation isn't possible, as half a sentence for a message; None if it is."""
    for name, split in (("train", train), ("val", val)):
        if len(split.labels) == 0:
            return f"{name} has no images"
        missing = int(np.count_nonzero(split.labels < 0))
        if missing == len(split.labels):
            return f"{name} has no labels"
        if missing:
            return f"{missing} of the {len(split.labels)} images of {name} have no label"
    present = {train.classes[label] for label in np.unique(train.labels)}
    if len(present) < 2:
        return f"train has images of one class only ({present.pop()})"
    if not present & {val.classes[label] for label in np.unique(val.labels)}:
        return "train and val share no class"
    if len(train.labels) < 4:
        return f"train has only {len(train.labels)} images"
    return None
