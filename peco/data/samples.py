"""What a stage reads of a sample: a random view of an epoch, or the evaluation view. Callables for `TrainLoader` and `scan`."""

from __future__ import annotations

from dataclasses import dataclass

from peco.core import config
from peco.data import views
from peco.data.loader import Fields
from peco.data.order import VIEW, sample_rng
from peco.data.shards import Sample


@dataclass(frozen=True)
class RandomView:
    """The view of a sample in an epoch: "image" of `size` pixels a side."""

    seed: int
    distribution: config.ViewDistribution
    size: int

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.decode()
        view = views.draw(
            sample_rng(self.seed, epoch, sample.index, VIEW), self.distribution, image.width, image.height
        )
        return {"index": sample.index, "image": views.apply(image, view, self.size)}


@dataclass(frozen=True)
class CenterView:
    """The evaluation view of a sample, "image" of `size` pixels a side, and its "label" (-1: none)."""

    size: int

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.decode()
        pixels = views.apply(image, views.center(image.width, image.height), self.size)
        return {"index": sample.index, "label": sample.label, "image": pixels}
