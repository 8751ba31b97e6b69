"""Stage `shards`: images of any source become WebDataset shards with an index."""

from __future__ import annotations

import time
from pathlib import Path

from peco.data.sources import open_source
from peco.data.writing import write_shards
from peco.publishing import staging
from peco.stages import common

PARAMS = ("dataset",)


class Lines:
    """A line of progress every few seconds."""

    def __init__(self, name: str, interval: float = 10.0) -> None:
        self._name, self._interval, self._shown = name, interval, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._shown >= self._interval or done == total:
            self._shown = now
            print(f"{self._name}  {done}{f'/{total}' if total else ''} images", flush=True)


def main(run: common.StageRun) -> None:
    dataset = run.config.dataset
    work = run.work([])
    source = open_source(dataset, work)
    with staging(common.SHARDS) as folder:
        index = write_shards(source, folder, dataset, work=work, progress=Lines(run.name))
    splits = {name: split["samples"] for name, split in index["splits"].items()}
    run.metrics({**splits, "classes": len(index["classes"]), "rejected": index["rejected"]})
    common.finished(work)


if __name__ == "__main__":
    common.run_stage(Path(__file__).stem, PARAMS, main)
