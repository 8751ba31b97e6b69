"""Opens the source that `dataset.source` names; the procedural set as a source."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from peco.core import config
from peco.core.errors import PecoError
from peco.scenes import scenes
from peco.scenes.descriptor import read_descriptor
from peco.sources.base import Ignored, RawSample, Source
from peco.sources.imagefolder import ImageFolder
from peco.sources.parquet import ParquetImages, is_parquet
from peco.sources.webdataset.source import WebDatasetSource

VAL_START = 1_000_000  # index of the first scene of val


def open_source(dataset: config.Dataset, work: Path) -> Source:
    """Open the source that the parameters name.

    Args:
        dataset: its `path` is relative to the current folder.
        work: folder for temporary files.

    Raises:
        PecoError: the input is missing, unreadable, damaged, empty or of another kind.
    """
    path = Path(dataset.path)
    if dataset.source == "scenes":
        return SceneSource(path, dataset.scenes)
    if dataset.source == "images":
        return ParquetImages(dataset) if is_parquet(path) else ImageFolder(dataset, work)
    return WebDatasetSource(
        dataset.path,
        val_fraction=dataset.val_fraction,
        seed=dataset.seed,
        work=work,
        labels=dataset.labels,
        label_field=dataset.label_field,
        image_field=dataset.image_field,
        class_numbers=dataset.class_numbers,
    )


class SceneSource:
    """The procedural set as PNG, in the order of its indices. Scenes are independent draws, so they need no shuffling.

    Args:
        path: descriptor with `generator: scenes`, `version` and `seed`.
        sizes: numbers of images, and their side in pixels.

    Raises:
        PecoError: the descriptor is missing or wrong, or names another version than this code draws.
    """

    def __init__(self, path: Path, sizes: config.Scenes) -> None:
        self._seed, self._sizes = read_descriptor(path), sizes
        if sizes.train > VAL_START:
            raise PecoError(f"dataset.scenes.train: {sizes.train} is not allowed; expected at most {VAL_START}")
        self.classes = scenes.CLASSES
        self.ignored, self.notes = Ignored(), list[str]()
        self.total: int | None = sizes.train + sizes.val

    def samples(self) -> Iterator[RawSample]:
        for split, first, count in (("train", 0, self._sizes.train), ("val", VAL_START, self._sizes.val)):
            for index in range(first, first + count):
                scene = scenes.render(self._seed, index, self._sizes.size)
                png = io.BytesIO()
                Image.fromarray(scene.image).save(png, "PNG")
                yield RawSample(split, f"{index:07d}.png", png.getvalue(), scene.label)
