"""Stage `shards`: write the images of any source as WebDataset shards with an index."""

from __future__ import annotations

import time
from pathlib import Path

from peco.core import workfiles
from peco.core.publishing import staging
from peco.data.summary import left_out_counts, summary
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage
from peco.sources.open import open_source
from peco.sources.shard_writer import write_shards

PARAMS = ("dataset",)


class ProgressLines:
    """Prints a progress line every `interval` seconds."""

    def __init__(self, name: str, interval: float = 10.0) -> None:
        self._name, self._interval, self._shown = name, interval, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._shown >= self._interval or done == total:
            self._shown = now
            print(f"{self._name}  {done}{f'/{total}' if total else ''} images", flush=True)


def main(run: StageRun) -> None:
    dataset = run.config.dataset
    work = run.work([])
    source = open_source(dataset, work)
    with staging(paths.SHARDS) as folder:
        index = write_shards(source, folder, dataset, work=work, progress=ProgressLines(run.name))
    splits = {name: split["samples"] for name, split in index["splits"].items()}
    counts = {"rejected": index["rejected"], **left_out_counts(index)}
    run.metrics({**splits, "classes": len(index["classes"]), **counts})
    for line in summary(index, paths.SHARDS):
        print(f"{run.name}: {line}")
    workfiles.mark_finished(work)


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
