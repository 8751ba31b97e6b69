"""Random crops of an image and its mask, for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from peco.annotations.sets import IGNORE

FILL = 128  # grey level beyond the border of an image: the mean that the backbone normalises by


@dataclass(frozen=True)
class Crop:
    """Parameters of a training view: resize to `width` x `height` pixels, crop from (left, top), mirror if `flip`."""

    width: int
    height: int
    left: int
    top: int
    flip: bool


def draw(rng: np.random.Generator, scale: tuple[float, float], width: int, height: int, size: int) -> Crop:
    """Draw scale, position and flip of a training view.

    Args:
        rng: generator of the sample and epoch.
        scale: range of the short side after resizing, in units of `size`.
        width, height: size of the image in pixels.
        size: side of the view in pixels.
    """
    factor, x, y, flip = rng.uniform(*scale), *rng.random(3)
    width, height = resized(width, height, factor * size)
    left, top = int(x * (max(width - size, 0) + 1)), int(y * (max(height - size, 0) + 1))
    return Crop(width, height, left, top, bool(flip < 0.5))


def apply(
    image: Image.Image, mask: NDArray[np.int32], crop: Crop, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Apply a crop to an image and its mask (H, W): uint8 (size, size, 3) and int32 (size, size).

    Pixels beyond the right and the lower border are grey and ignored.
    """
    seen = (min(size, crop.width - crop.left), min(size, crop.height - crop.top))
    per_x, per_y = image.width / crop.width, image.height / crop.height
    box = (
        crop.left * per_x,
        crop.top * per_y,
        min((crop.left + seen[0]) * per_x, image.width),
        min((crop.top + seen[1]) * per_y, image.height),
    )
    pixels, labels = Image.new("RGB", (size, size), (FILL,) * 3), Image.new("I", (size, size), IGNORE)
    pixels.paste(image.resize(seen, Image.Resampling.BICUBIC, box=box))
    labels.paste(Image.fromarray(mask).resize(seen, Image.Resampling.NEAREST, box=box))
    if crop.flip:
        pixels, labels = ImageOps.mirror(pixels), ImageOps.mirror(labels)
    return np.asarray(pixels), np.asarray(labels)


def resized(width: int, height: int, short: float) -> tuple[int, int]:
    """Width and height in pixels of an image after resizing its short side to `short`, aspect kept."""
    factor = short / min(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))
