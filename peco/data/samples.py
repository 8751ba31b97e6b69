"""Transforms for `TrainLoader` and `eval_batches`: the random view of a sample in an epoch, and its evaluation view."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from peco.core import config
from peco.data import views
from peco.data.loader import Fields
from peco.data.order import VIEW, sample_rng
from peco.data.shards import Sample


@dataclass(frozen=True)
class RandomView:
    """The random view of a sample in an epoch: "image" makes uint8 pixels (size, size, 3); "index" is that of the sample."""

    seed: int
    distribution: config.ViewDistribution
    size: int

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.open()
        view = views.draw(
            sample_rng(self.seed, epoch, sample.index, VIEW), self.distribution, image.width, image.height
        )
        return {"index": sample.index, "image": partial(views.apply, image, view, self.size)}


@dataclass(frozen=True)
class CenterView:
    """The evaluation view of a sample: "image" makes uint8 pixels (size, size, 3); its "label" (-1: none) and "index"."""

    size: int

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.open()
        view = views.center(image.width, image.height)
        return {"index": sample.index, "label": sample.label, "image": partial(views.apply, image, view, self.size)}
