"""Stage `shards`: write the images of any source as WebDataset shards with an index."""

from __future__ import annotations

from pathlib import Path

from peco.core import workfiles
from peco.core.progress import ProgressLines, waiting
from peco.core.publishing import staging
from peco.data.summary import left_out_counts, summary
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage
from peco.sources.open import open_source
from peco.sources.shard_writer import write_shards

PARAMS = ("dataset",)


def main(run: StageRun) -> None:
    dataset = run.config.dataset
    work = run.work([])
    with waiting(f"{run.name}: listing the images"):
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
