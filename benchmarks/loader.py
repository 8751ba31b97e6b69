"""Images per second of CPU time that reach a training step, compared with bare libraries and other loaders, as markdown tables.

    python -m benchmarks.loader [--images 2048] [--rounds 5]

The JPEGs are made here: smooth colours and texture, quality 90, about 0.4 bytes a pixel as in photos; of ImageNet's usual size, and
with a short side of 256. Each row reads each image once, as the first epoch does, from a warm file cache, in one thread for each
process, and makes views of 224x224 by the distributions of the preset `imagenet_vit_b`. Rounds are interleaved: a round runs all
rows in turn, and a ratio is that of two rows of one round. CPU time is that of all processes, so that work next to the benchmark
counts little; on an idle machine it is the time of a core.

* Pillow; simplejpeg and torch: decode, crop, resize alone, the images in memory and the views drawn before;
* training loader: `TrainLoader` from shards to float32 batches, or to uint8 batches that a GPU converts (the device "meta" stands
  for it), with the views of the tokenizer (crop and flip) and of pre-training (also colours and a mask, from a token store);
* torchvision, webdataset: ImageFolder, or the same shards, with torchvision's transforms on uint8 tensors, to float32 batches.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.util
import io
import resource
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F
from torch.utils.data import DataLoader

from peco.core.device import CPU
from peco.core.params import parse_params
from peco.data import views
from peco.data.loader import TrainLoader, Transform, collate, to_device
from peco.data.order import VIEW, sample_rng
from peco.data.samples import RandomView
from peco.data.shards import ShardSet, open_shards
from peco.data.tokens import TokenStore, entry_dtype, shard_file, write_index
from peco.sources.open import open_source
from peco.sources.shard_writer import write_shards
from peco.stages.pretrain import MaskedView
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("imagenet_vit_b", []))
SIZE = CFG.loader.image_size
GRID = SIZE // CFG.pretrain.vit.patch_size
BATCH = CFG.loader.lanes
WORKERS = (0, 2)
SIZES = {"500x375": (500, 375), "short side 256": (341, 256)}
BASE, LIBRARY = "Pillow", "simplejpeg and torch"
Row = Callable[[], int]  # reads all images once; returns their number


@dataclass(frozen=True)
class Speed:
    """Images per second of CPU time, and of time."""

    core: float
    wall: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchvision|webdataset")
    for name in ("torchvision", "webdataset"):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed; its rows are left out")
    for title, (width, height) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            data = Data.make(Path(folder), arguments.images // BATCH * BATCH, width, height)
            rows = data.rows()
            found: dict[str, list[Speed]] = {name: [] for name in rows}
            for _ in range(arguments.rounds):
                for name, row in rows.items():
                    found[name].append(measure(row))
            print(f"\nJPEGs of {title}, {data.mean_bytes:.0f} bytes\n\n{table(found)}\n\n{data.profile()}", flush=True)


def measure(row: Row) -> Speed:
    """Run a row once."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    images = row()
    gc.collect()  # ends loader processes, whose time counts from then on
    return Speed(images / (_cpu_seconds() - cpu), images / (time.perf_counter() - wall))


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def table(found: dict[str, list[Speed]]) -> str:
    """Medians over the rounds, and ratios with their range."""
    lines = [
        "| row | images per CPU second | images per second | compared with Pillow | with simplejpeg and torch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, speeds in found.items():
        ratios = []
        for base in (BASE, LIBRARY):
            values = [mine.core / other.core for mine, other in zip(speeds, found[base], strict=True)]
            ratios.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        core, wall = (statistics.median(getattr(speed, key) for speed in speeds) for key in ("core", "wall"))
        lines.append(f"| {name} | {core:.0f} | {wall:.0f} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Data:
    """Images as files of an ImageFolder, and in shards with stored views."""

    folder: Path
    shards: ShardSet
    store: TokenStore

    @classmethod
    def make(cls, folder: Path, count: int, width: int, height: int) -> Data:
        """Make images of one size."""
        for split, number in (("train", count), ("val", 1)):
            (folder / "images" / split / "one").mkdir(parents=True)
            for index in range(number):
                (folder / "images" / split / f"one/{index:05}.jpg").write_bytes(jpeg(index, width, height))
        dataset = dataclasses.replace(CFG.dataset, path=str(folder / "images"), samples_per_shard=BATCH)
        write_shards(open_source(dataset, folder), folder / "shards", dataset, work=folder, workers=1)
        shards = open_shards(folder / "shards", "train")
        (folder / "tokens").mkdir()
        for start, shard in zip(shards.starts.tolist(), shards.shards, strict=True):
            entries = np.zeros((shard.samples, 1), entry_dtype(GRID**2))
            for index in range(shard.samples):
                rng = sample_rng(CFG.seed, 0, start + index, VIEW)
                entries["view"][index, 0] = views.to_record(views.draw(rng, CFG.tokens.view, width, height))
            np.save(folder / "tokens" / shard_file(shard.name), entries)
        write_index(folder / "tokens", shards, views=1, grid=GRID, codes=1)
        return cls(folder, shards, TokenStore(folder / "tokens", shards))

    @property
    def mean_bytes(self) -> float:
        return float(np.mean([len(sample.encoded) for sample in self.shards.read(0, len(self.shards))]))

    @property
    def tokenizer_view(self) -> RandomView:
        return RandomView(CFG.seed, CFG.tokenizer.view, SIZE)

    @property
    def pretrain_view(self) -> MaskedView:
        return MaskedView(CFG.seed, CFG.tokens.view, SIZE, GRID, CFG.pretrain.masking, self.store, None)

    def rows(self) -> dict[str, Row]:
        """All rows by name."""
        samples = list(self.shards.read(0, len(self.shards)))
        drawn = [self.store.get(sample.index, 0)[0] for sample in samples]
        pairs = [(sample.encoded, view) for sample, view in zip(samples, drawn, strict=True)]
        rows: dict[str, Row] = {
            BASE: lambda: sum(pillow(*pair, colors=False) for pair in pairs),
            f"{BASE} with colours": lambda: sum(pillow(*pair, colors=True) for pair in pairs),
            LIBRARY: lambda: sum(library(*pair) for pair in pairs),
        }
        for view, transform in (("tokenizer", self.tokenizer_view), ("pre-training", self.pretrain_view)):
            for target, device in (("float32", CPU), ("for a GPU", torch.device("meta"))):
                for workers in WORKERS:
                    name = f"training loader, {view}, {target}, {workers} workers"
                    rows[name] = self._training(transform, workers, device)
        for workers in WORKERS:
            if importlib.util.find_spec("torchvision"):
                rows[f"torchvision, {workers} workers"] = self._torchvision(workers)
                if importlib.util.find_spec("webdataset"):
                    rows[f"webdataset, {workers} workers"] = self._webdataset(workers)
        return rows

    def _training(self, transform: Transform, workers: int, device: torch.device) -> Row:
        loader = TrainLoader(
            self.shards,
            transform,
            batch_size=BATCH,
            seed=CFG.seed,
            lanes=CFG.loader.lanes,
            buffer=CFG.loader.shuffle_buffer,
            workers=workers,
            device=device,
        )
        return lambda: sum(len(batch["image"]) for batch in loader.batches(0, len(self.shards) // BATCH))

    def _torchvision(self, workers: int) -> Row:
        from torchvision.datasets import ImageFolder

        images = ImageFolder(str(self.folder / "images/train"), torchvision_view())
        return lambda: counted(DataLoader(images, BATCH, shuffle=True, num_workers=workers))

    def _webdataset(self, workers: int) -> Row:
        import webdataset

        urls = [str(self.shards.root / shard.name) for shard in self.shards.shards]
        images = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(CFG.loader.shuffle_buffer).decode("pil")
        batches = images.to_tuple("jpg").map_tuple(torchvision_view()).batched(BATCH)
        return lambda: counted(webdataset.WebLoader(batches, batch_size=None, num_workers=workers))

    def profile(self) -> str:
        """Time of each part of the training loader with the tokenizer's view, one after the other, in this process."""
        seconds: defaultdict[str, float] = defaultdict(float)

        @contextlib.contextmanager
        def timed(part: str) -> Iterator[None]:
            began = time.thread_time()
            yield
            seconds[part] += time.thread_time() - began

        for start in range(0, len(self.shards), BATCH):
            with timed("read"):
                samples = list(self.shards.read(start, start + BATCH))
            with timed("open"):
                opened = [sample.open() for sample in samples]
            with timed("draw"):
                random = [sample_rng(CFG.seed, 0, sample.index, VIEW) for sample in samples]
                drawn = [
                    views.draw(rng, CFG.tokenizer.view, *image.size) for rng, image in zip(random, opened, strict=True)
                ]
            fields = []
            for image, view in zip(opened, drawn, strict=True):
                with timed("decode"):
                    image.crop((0, 0, *image.size), max(image.size))
                with timed("resize, flip"):
                    fields.append({"image": views.apply(image, view, SIZE)})
            with timed("stack"):
                batch = collate(fields)
            with timed("to float32"):
                to_device([batch], CPU)
        seconds["sum"] = sum(seconds.values())
        lines = ["| part of the training loader | microseconds an image |", "| --- | --- |"]
        return "\n".join([*lines, *(f"| {name} | {1e6 * s / len(self.shards):.0f} |" for name, s in seconds.items())])


def jpeg(seed: int, width: int, height: int) -> bytes:
    """An image of smooth colours and texture."""
    rng = np.random.default_rng([seed, width])
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels = smooth + rng.normal(0, 8, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def pillow(encoded: bytes, view: views.View, *, colors: bool) -> int:
    """Make a view by Pillow alone. Returns 1, the number of images."""
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    image = Image.open(io.BytesIO(encoded)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    if colors:
        image = ImageEnhance.Brightness(image).enhance(view.brightness)
        image = ImageEnhance.Contrast(image).enhance(view.contrast)
        image = ImageEnhance.Color(image).enhance(view.saturation)
    return 1


def library(encoded: bytes, view: views.View) -> int:
    """Make a view by simplejpeg and torch alone. Returns 1."""
    pixels = simplejpeg.decode_jpeg(encoded)[view.top : view.top + view.height, view.left : view.left + view.width]
    x_1CHW = torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2)
    F.interpolate(x_1CHW, (SIZE, SIZE), mode="bicubic", antialias=True)
    return 1


def torchvision_view() -> Callable[[Any], torch.Tensor]:
    """The tokenizer's view by torchvision, as its documentation advises for speed: on uint8 tensors."""
    from torchvision.transforms import InterpolationMode, v2

    view = CFG.tokenizer.view
    crop = v2.RandomResizedCrop(SIZE, view.scale, view.ratio, InterpolationMode.BICUBIC, antialias=True)
    flip = v2.RandomHorizontalFlip(view.flip)
    transform: Callable[[Any], torch.Tensor] = v2.Compose(
        [v2.ToImage(), crop, flip, v2.ToDtype(torch.float32, scale=True)]
    )
    return transform


def counted(batches: Iterable[Any]) -> int:
    """The number of images in batches whose first field is the images."""
    return sum(len(batch[0]) for batch in batches)


if __name__ == "__main__":
    main()
