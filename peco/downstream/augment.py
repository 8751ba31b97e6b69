"""Augmentation of a training image for fine-tuning, as in BEiT: random resized crop, flip, RandAugment, random erasing."""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform

from peco import config
from peco.data import views
from peco.errors import PecoError

CROP_RATIO = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 1 / 3)  # shares of the image
ERASED_ASPECT = (0.3, 1 / 0.3)
FILL = (128, 128, 128)  # what RandAugment shows beyond the border: the mean that the backbone normalises by


@contextlib.contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Let the global generators of `random` and numpy, which timm draws from, start from `key`; put them back afterwards.

    Args:
        key: non-negative integers, such as (seed, epoch, sample, purpose).
    """
    words = np.random.SeedSequence(key).generate_state(8)
    before = random.getstate(), np.random.get_state()
    random.seed(words.tobytes())
    np.random.seed(words)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def augment(image: Image.Image, key: Sequence[int], size: int, cfg: config.Finetune) -> np.ndarray:
    """Draw one training view of an image.

    Args:
        image: upright RGB.
        key: non-negative integers that decide everything, such as (seed, epoch, sample, purpose).
        size: side in pixels.
        cfg: `crop_scale`, `rand_augment` (timm's notation; None for none) and `random_erase` (probability).

    Returns:
        uint8 (size, size, 3).
    """
    rng = np.random.default_rng(list(key))
    recipe = config.View(
        scale=cfg.crop_scale,
        ratio=CROP_RATIO,
        flip=0.5,
        jitter=(0, 0, 0, 0),
        jitter_prob=0,
        grayscale=0,
        blur=0,
        solarize=0,
    )
    pixels = views.apply(image, views.draw(rng, recipe, image.width, image.height), size)
    if cfg.rand_augment is not None:
        with seeded(key):
            pixels = np.asarray(policy(cfg.rand_augment, size)(Image.fromarray(pixels)))
    return _erase(pixels, rng) if rng.random() < cfg.random_erase else pixels


@functools.lru_cache
def policy(name: str, size: int) -> Any:
    """RandAugment (arXiv 1909.13719) by timm's notation, for images of `size` pixels a side.

    Returns:
        PIL image to PIL image; it draws from the global generators.

    Raises:
        PecoError: no such policy.
    """
    try:
        # Shifts of at most 45 % of the side, as in timm's own training transform.
        hparams = {"translate_const": int(size * 0.45), "img_mean": FILL}
        transform = rand_augment_transform(name, hparams)
    except (AssertionError, KeyError, ValueError):
        raise PecoError(
            f"evaluate.finetune.rand_augment: {name!r} is not allowed; expected timm's notation, such as "
            "rand-m9-mstd0.5-inc1, or null"
        ) from None
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # The strongest magnitudes ask for 0 bits, at which Pillow 13 raises an error and earlier ones gave black.
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new("RGB", image.size)


def _erase(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill a random rectangle with noise (Zhong et al., arXiv 1708.04896)."""
    height, width, channels = pixels.shape
    area = rng.uniform(*ERASED_AREA) * height * width
    aspect = math.exp(rng.uniform(*np.log(ERASED_ASPECT)))
    rows = min(max(round(math.sqrt(area * aspect)), 1), height)
    columns = min(max(round(math.sqrt(area / aspect)), 1), width)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    noise = rng.normal(0.5, 0.5, (rows, columns, channels))  # normal of deviation 1 after normalisation
    erased = pixels.copy()
    erased[top : top + rows, left : left + columns] = np.rint(noise.clip(0, 1) * 255).astype(np.uint8)
    return erased
