"""The holdout split for choosing hyperparameters, and the check that a labelled evaluation is possible."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from peco.core.errors import PecoError
from peco.core.numbers import evenly_spaced


class Labeled(Protocol):
    """Labels of a split, as `peco.data.shards.ShardSet` has them."""

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,), indices into `classes`; -1 for a sample without a label."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""


def holdout_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Divide train into a part to fit on and a part to choose hyperparameters on, so that val is used for the score only.

    The holdout is the end of the split in shard order, which was shuffled when the shards were written. Streamed shards keep the
    order of their source: if evenly spaced samples have more classes than the end, they are the holdout.

    Args:
        labels: int64 (n,), of train.
        fraction: size of the holdout as a share of train; each part gets at least one sample.

    Returns:
        int64 indices of the part to fit on and of the holdout.

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


def share_of_classes(labels: np.ndarray, share: float) -> np.ndarray:
    """A share of the samples of each class, rounded up, evenly spaced in the split.

    Args:
        labels: int64 (n,).
        share: over 0, at most 1.

    Returns:
        their indices, int64, rising.
    """
    chosen = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = math.ceil(round(share * len(places), 6))  # without the error of 0.1 * 30 = 3.0000000000000004
        chosen.append(places[evenly_spaced(len(places), count)])
    return np.sort(np.concatenate(chosen))


def skip_reason(train: Labeled, val: Labeled) -> str | None:
    """Reason why a labelled evaluation isn't possible, as half a sentence for a message; None if it is possible."""
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
