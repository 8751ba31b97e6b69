"""Views of an image, drawn as numbers and replayed exactly.

A view is every random decision of the augmentation of one image: crop, flip, colour. `draw` draws it once, `to_record` stores it
next to a token grid, and `apply` makes the same pixels from it each time. So token targets can be computed once, by a stage of
their own, and still belong to exactly the crop that pre-training reads.

The crop is resized by torch's bicubic filter with antialiasing in 8 bits (that of Pillow, to one level, in a third of the time).
Its arithmetic is in integers, and its pixels are the same with AVX-512, AVX2 and without (`tests/test_views.py`). Changes of colour
are single multiplications and additions in float32, which are the same on any CPU, too.

Legend: C colour, H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional as F

from peco.core import config
from peco.data.images import Picture

CROP_ATTEMPTS = 10
BLUR_SIGMA = (0.1, 2.0)  # pixels at 224; scaled with the size of the view
SOLARIZE_THRESHOLD = 128
ENOUGH = 2  # pixels of a crop along each side, in units of the view's; a larger JPEG may be decoded at a reduced size


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
    flip, jitter, gray, blur, solarize = rng.random(5).tolist()
    strength = [float(jitter < distribution.jitter_prob) * largest for largest in distribution.jitter]
    factors = [share * largest for share, largest in zip(rng.uniform(-1, 1, 4).tolist(), strength, strict=True)]
    brightness, contrast, saturation = (max(0.0, 1.0 + factor) for factor in factors[:3])
    sigma = rng.uniform(*BLUR_SIGMA)
    return View(
        left=left,
        top=top,
        width=crop_width,
        height=crop_height,
        flip=flip < distribution.flip,
        brightness=_float32(brightness),
        contrast=_float32(contrast),
        saturation=_float32(saturation),
        hue=_float32(factors[3]),
        grayscale=gray < distribution.grayscale,
        blur=_float32(sigma) if blur < distribution.blur else 0.0,
        solarize=solarize < distribution.solarize,
    )


def apply(image: Picture, view: View, size: int) -> np.ndarray:
    """Pixels of a view: uint8 of shape (size, size, 3).

    Args:
        image: has the size that the view was drawn for.
        view: the view.
        size: side in pixels.

    Raises:
        ValueError: the crop isn't inside the image: the view was drawn for another one.
        PecoError: the image is damaged.
    """
    x_CHW = _crop(image, view, size)
    if view.flip:
        x_CHW = x_CHW.flip(2)
    if (view.brightness, view.contrast, view.saturation) != (1.0, 1.0, 1.0):
        x_CHW = _jitter(x_CHW, view)
    pixels: np.ndarray = x_CHW.permute(1, 2, 0).numpy()
    if view.hue == 0.0 and not view.grayscale and view.blur == 0.0 and not view.solarize:
        return pixels
    picture = Image.fromarray(pixels)
    if view.hue != 0.0:
        picture = _shift_hue(picture, view.hue)
    if view.grayscale:
        picture = picture.convert("L").convert("RGB")
    if view.blur > 0.0:
        picture = picture.filter(ImageFilter.GaussianBlur(view.blur * size / 224))
    if view.solarize:
        picture = ImageOps.solarize(picture, SOLARIZE_THRESHOLD)
    return np.asarray(picture)


def _crop(image: Picture, view: View, size: int) -> Tensor:
    """The crop, resized: uint8 (3, size, size)."""
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    if view.left < 0 or view.top < 0 or box[2] > image.width or box[3] > image.height:
        raise ValueError(f"view {box} lies outside an image of {image.width}x{image.height}")
    crop_HWC = torch.from_numpy(image.crop(box, ENOUGH * size).copy())
    x_1CHW = crop_HWC[None].permute(0, 3, 1, 2)
    x_CHW: Tensor = F.interpolate(x_1CHW, (size, size), mode="bicubic", antialias=True)[0]
    return x_CHW


def _jitter(pixels_CHW: Tensor, view: View) -> Tensor:
    """Change brightness, contrast and saturation, in this order, to the values of Pillow's ImageEnhance."""
    x_CHW = pixels_CHW.contiguous().float()
    if view.brightness != 1.0:
        _to_levels(x_CHW.mul_(view.brightness), view.brightness)
    if view.contrast != 1.0:
        mean = float(_luma(x_CHW).sum(dtype=torch.float64)) / x_CHW[0].numel()
        start = math.floor(mean + 0.5)
        _to_levels(x_CHW.sub_(start).mul_(view.contrast).add_(start), view.contrast)
    if view.saturation != 1.0:
        luma_HW = _luma(x_CHW)
        _to_levels(x_CHW.sub_(luma_HW).mul_(view.saturation).add_(luma_HW), view.saturation)
    return x_CHW.byte()


def _to_levels(x_CHW: Tensor, factor: float) -> None:
    """Round values down, in place, and clip them to 0 to 255, which only a factor over 1 leaves."""
    if factor > 1.0:
        x_CHW.clamp_(0, 255)
    x_CHW.floor_()


def _luma(x_CHW: Tensor) -> Tensor:
    """Grey levels (H, W) of whole levels of RGB, by Pillow's weights; all sums are whole and below 2^24, so exact in float32."""
    red_HW, green_HW, blue_HW = x_CHW
    sum_HW = red_HW.mul(19595).add_(green_HW, alpha=38470).add_(blue_HW, alpha=7471).add_(32768)
    grey_HW: Tensor = sum_HW.mul_(1 / 65536).floor_()
    return grey_HW


def _draw_crop(
    rng: np.random.Generator, distribution: config.ViewDistribution, width: int, height: int
) -> tuple[int, int, int, int]:
    shares = rng.uniform(*distribution.scale, CROP_ATTEMPTS).tolist()
    aspects = rng.uniform(math.log(distribution.ratio[0]), math.log(distribution.ratio[1]), CROP_ATTEMPTS).tolist()
    x, y = rng.random(2).tolist()
    for share, log_aspect in zip(shares, aspects, strict=True):
        area, aspect = share * width * height, math.exp(log_aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= w <= width and 1 <= h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    middle = center(width, height)
    return middle.left, middle.top, middle.width, middle.height


def _shift_hue(image: Image.Image, shift: float) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(shift * 255) % 256)  # uint8 wraps around, as the colour circle does
    return Image.fromarray(hsv, "HSV").convert("RGB")


def _float32(value: float) -> float:
    return float(np.float32(value))
