"""The splits that labelled evaluations need."""

from __future__ import annotations

from peco.data.shards import ShardSet, load_index, open_shards
from peco.downstream.splits import why_skipped
from peco.stages import common


def labelled_splits() -> tuple[ShardSet, ShardSet]:
    """Train and val.

    Raises:
        Skipped: an evaluation that needs labels, or classes that both share, isn't possible on them.
    """
    missing = {"train", "val"} - set(load_index(common.SHARDS)["splits"])
    if missing:
        raise common.Skipped(f"the data has no {missing.pop()} split")
    train, val = (open_shards(common.SHARDS, split) for split in ("train", "val"))
    if reason := why_skipped(train, val):
        raise common.Skipped(reason)
    return train, val
