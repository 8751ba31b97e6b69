"""Stage `tokens`: the token targets of V views of every training sample, one array file per shard.

View v is the view that training would draw in epoch v. With `tokens.views: 0` nothing is stored, and pre-training computes tokens
online. Shards are distributed over the processes; shards that an interrupted run has finished are kept. Processes wait for each
other's files and not in a collective, which has a timeout: with few shards their work may be uneven.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from peco.core import config, workfiles
from peco.core.publishing import replacing, staging
from peco.data import views
from peco.data.loader import Fields, eval_batches
from peco.data.order import VIEW, sample_rng
from peco.data.shards import Sample, ShardSet, open_shards
from peco.data.tokens import TokenStore, entry_dtype, shard_file, write_index
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage
from peco.tokenizer import storage
from peco.tokenizer.model import PerceptualTokenizer
from peco.tokenizer.quantizer import usage_and_perplexity
from peco.training.distributed import Dist

PARAMS = ("seed", "tokens")
VIEWS_AT_ONCE = 256  # or those of one sample, if these are more
POLL_SECONDS, NOTICE_SECONDS = 0.5, 30.0


@dataclass(frozen=True)
class StoredViews:
    """Transform of a sample to its stored views: pixels uint8 (V, H, W, 3), and records (V,) of VIEW_DTYPE as bytes."""

    seed: int
    distribution: config.ViewDistribution
    count: int
    size: int

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.open()
        drawn = [
            views.draw(sample_rng(self.seed, v, sample.index, VIEW), self.distribution, image.width, image.height)
            for v in range(self.count)
        ]
        records = np.stack([views.to_record(view) for view in drawn])
        pixels = np.stack([views.apply(image, view, self.size) for view in drawn])
        return {"pixels": pixels, "records": records.view(np.uint8).reshape(self.count, -1)}


def main(run: StageRun) -> None:
    dist = Dist.init()
    train = open_shards(paths.SHARDS, "train")
    tokenizer = storage.load(paths.TOKENIZER).to(dist.device)
    size = storage.image_size(paths.TOKENIZER)
    count = run.config.tokens.views
    codes, grid = tokenizer.quantizer.codes, size // tokenizer.factor
    work = run.work([paths.SHARDS, paths.TOKENIZER], dist.share)
    folder = work / "tokens"
    folder.mkdir(exist_ok=True)
    files = [folder / shard_file(shard.name) for shard in train.shards] if count else []
    if count:
        transform = StoredViews(run.config.seed, run.config.tokens.view, count, size)
        for number in range(dist.rank, len(train.shards), dist.world):
            if not files[number].exists():
                write_shard(train, number, tokenizer, transform, files[number], dist.device, run.workers)
            if dist.rank == 0:
                print(f"tokens  shard {number + 1}/{len(train.shards)}", flush=True)
    wait_for(files, visible=dist.rank == 0)
    if dist.rank == 0:
        with staging(paths.TOKENS) as published:
            for file in files:
                shutil.copyfile(file, published / file.name)
            write_index(published, train, views=count, grid=grid, codes=codes)
        usage = code_usage(TokenStore(paths.TOKENS, train)) if count else {}
        run.metrics({"views": count, "samples": len(train), **usage})
        workfiles.mark_finished(work)


def wait_for(files: Sequence[Path], *, visible: bool) -> None:
    """Wait without a limit until all files exist; each appears when it is complete.

    Args:
        files: those of all processes.
        visible: report their number every half minute.
    """
    announced = time.monotonic()
    while missing := sum(not file.exists() for file in files):
        time.sleep(POLL_SECONDS)
        if visible and time.monotonic() - announced >= NOTICE_SECONDS:
            announced = time.monotonic()
            print(f"tokens  {len(files) - missing}/{len(files)} shards are complete", flush=True)


def write_shard(
    train: ShardSet,
    number: int,
    tokenizer: PerceptualTokenizer,
    transform: StoredViews,
    target: Path,
    device: torch.device,
    workers: int,
) -> None:
    """Tokenize the views of one shard; `target` appears when it is complete."""
    start = int(train.starts[number])
    stop = start + train.shards[number].samples
    parts = []
    samples = max(1, VIEWS_AT_ONCE // transform.count)
    for batch in eval_batches(
        train,
        transform,
        batch_size=samples,
        workers=workers,
        start=start,
        stop=stop,
        device=device,
        label=f"tokens  shard {number + 1}",
    ):
        pixels = batch["pixels"].flatten(0, 1)
        x_BCHW = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
        tokens_Bhw = tokenizer.tokenize(x_BCHW)
        entries = np.empty((len(batch["pixels"]), transform.count), dtype=entry_dtype(tokens_Bhw[0].numel()))
        entries["view"] = batch["records"].cpu().numpy().view(views.VIEW_DTYPE)[..., 0]
        entries["tokens"] = tokens_Bhw.cpu().numpy().reshape(*entries.shape, -1)
        parts.append(entries)
    with replacing(target) as part, part.open("wb") as stream:
        np.save(stream, np.concatenate(parts))


def code_usage(store: TokenStore) -> dict[str, float]:
    """Share of the codes that occur among all stored tokens, and perplexity of their distribution."""
    histogram_K = np.zeros(store.codes, dtype=np.int64)
    for shard in store.shards.shards:
        entries = np.load(store.folder / shard_file(shard.name), mmap_mode="r")
        histogram_K += np.bincount(entries["tokens"].ravel(), minlength=store.codes)
    usage, perplexity = usage_and_perplexity(histogram_K)
    return {"usage": usage, "perplexity": perplexity}


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
