"""Views of an image, drawn as numbers and replayed exactly.

A view is every random decision of the augmentation of one image: crop, flip, colour. `draw` draws it once, `to_record` stores it
next to a token grid, and `apply` makes the same pixels from it each time. So token targets can be computed once, by a stage of
their own, and still belong to exactly the crop that pre-training reads.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from peco.core import config

CROP_ATTEMPTS = 10
BLUR_SIGMA = (0.1, 2.0)  # pixels at 224; scaled with the size of the view
SOLARIZE_THRESHOLD = 128


@dataclass(frozen=True)
class View:
    """One view. The crop is in pixels of the upright original. Colour factors of 1 and a hue shift of 0 change nothing."""

    left: int
    top: int
    width: int
    height: int
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # share of the colour circle, -0.5 to 0.5
    grayscale: bool = False
    blur: float = 0.0  # standard deviation in pixels of a 224-pixel view
    solarize: bool = False


# Holds the numbers of a drawn view exactly, since `draw` rounds to float32 and int32.
VIEW_DTYPE = np.dtype(
    [(f.name, {"int": "<i4", "bool": "?", "float": "<f4"}[str(f.type)]) for f in dataclasses.fields(View)]
)


def to_record(view: View) -> np.ndarray:
    """The view as a 0-d array of `VIEW_DTYPE`, without loss."""
    return np.array(dataclasses.astuple(view), dtype=VIEW_DTYPE)


def from_record(record: np.ndarray | np.void) -> View:
    """Inverse of `to_record`."""
    return View(*record.item())


def center(width: int, height: int) -> View:
    """The evaluation view: the centre square of an image of this size in pixels."""
    side = min(width, height)
    return View(left=(width - side) // 2, top=(height - side) // 2, width=side, height=side)


def draw(rng: np.random.Generator, distribution: config.ViewDistribution, width: int, height: int) -> View:
    """Draw a view of an image of `width` x `height` pixels.

    The crop is the random resized crop of Inception: area and aspect (log-uniform) by `distribution`, retried if it doesn't fit,
    and after `CROP_ATTEMPTS` the centre. The number of random numbers drawn does not depend on the decisions.
    """
    left, top, crop_width, crop_height = _draw_crop(rng, distribution, width, height)
    flip, jitter, gray, blur, solarize = rng.random(5)
    factors = rng.uniform(-1, 1, 4) * (jitter < distribution.jitter_prob) * np.array(distribution.jitter)
    brightness, contrast, saturation = (max(0.0, 1.0 + float(f)) for f in factors[:3])
    sigma = rng.uniform(*BLUR_SIGMA)
    return View(
        left=left,
        top=top,
        width=crop_width,
        height=crop_height,
        flip=bool(flip < distribution.flip),
        brightness=_float32(brightness),
        contrast=_float32(contrast),
        saturation=_float32(saturation),
        hue=_float32(factors[3]),
        grayscale=bool(gray < distribution.grayscale),
        blur=_float32(sigma) if blur < distribution.blur else 0.0,
        solarize=bool(solarize < distribution.solarize),
    )


def apply(image: Image.Image, view: View, size: int) -> np.ndarray:
    """Pixels of a view: uint8 of shape (size, size, 3).

    Args:
        image: upright RGB image of the size that the view was drawn for.
        view: the view.
        size: side in pixels.

    Raises:
        ValueError: the crop isn't inside the image: the view was drawn for another one.
    """
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    if view.left < 0 or view.top < 0 or box[2] > image.width or box[3] > image.height:
        raise ValueError(f"view {box} lies outside an image of {image.width}x{image.height}")
    pixels = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if view.flip:
        pixels = ImageOps.mirror(pixels)
    for enhance, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.saturation),
    ):
        if factor != 1.0:
            pixels = enhance(pixels).enhance(factor)
    if view.hue != 0.0:
        pixels = _shift_hue(pixels, view.hue)
    if view.grayscale:
        pixels = pixels.convert("L").convert("RGB")
    if view.blur > 0.0:
        pixels = pixels.filter(ImageFilter.GaussianBlur(view.blur * size / 224))
    if view.solarize:
        pixels = ImageOps.solarize(pixels, SOLARIZE_THRESHOLD)
    return np.asarray(pixels)


def _draw_crop(
    rng: np.random.Generator, distribution: config.ViewDistribution, width: int, height: int
) -> tuple[int, int, int, int]:
    areas = rng.uniform(*distribution.scale, CROP_ATTEMPTS) * width * height
    aspects = np.exp(rng.uniform(math.log(distribution.ratio[0]), math.log(distribution.ratio[1]), CROP_ATTEMPTS))
    offsets = rng.random(2)
    widths = np.rint(np.sqrt(areas * aspects)).astype(int)
    heights = np.rint(np.sqrt(areas / aspects)).astype(int)
    fits = (widths >= 1) & (heights >= 1) & (widths <= width) & (heights <= height)
    if not fits.any():
        middle = center(width, height)
        return middle.left, middle.top, middle.width, middle.height
    w, h = int(widths[fits.argmax()]), int(heights[fits.argmax()])
    return int(offsets[0] * (width - w + 1)), int(offsets[1] * (height - h + 1)), w, h


def _shift_hue(image: Image.Image, shift: float) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(shift * 255) % 256)  # uint8 wraps around, as the colour circle does
    return Image.fromarray(hsv, "HSV").convert("RGB")


def _float32(value: float) -> float:
    return float(np.float32(value))
