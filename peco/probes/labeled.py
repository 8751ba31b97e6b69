"""The splits that labelled evaluations need."""

from __future__ import annotations

from peco.data.shards import ShardSet, load_index, open_shards
from peco.probes.holdout import skip_reason
from peco.runtime import paths
from peco.runtime.stage import Skipped


def labeled_splits() -> tuple[ShardSet, ShardSet]:
    """Open train and val.

    Raises:
        Skipped: a split is missing, or a labelled evaluation isn't possible on them (`holdout.skip_reason`).
    """
    missing = {"train", "val"} - set(load_index(paths.SHARDS)["splits"])
    if missing:
        raise Skipped(f"the data has no {missing.pop()} split")
    train, val = (open_shards(paths.SHARDS, split) for split in ("train", "val"))
    if reason := skip_reason(train, val):
        raise Skipped(reason)
    return train, val
