"""The splits that labelled evaluations need."""

from __future__ import annotations

from peco.data.shards import ShardSet, load_index, open_shards
from peco.probes.holdout import why_skipped
from peco.runtime import paths
from peco.runtime.stage import Skipped


def labeled_splits() -> tuple[ShardSet, ShardSet]:
    """Train and val.

    Raises:
        Skipped: an evaluation that needs labels, or classes that both share, isn't possible on them.
    """
    missing = {"train", "val"} - set(load_index(paths.SHARDS)["splits"])
    if missing:
        raise Skipped(f"the data has no {missing.pop()} split")
    train, val = (open_shards(paths.SHARDS, split) for split in ("train", "val"))
    if reason := why_skipped(train, val):
        raise Skipped(reason)
    return train, val
