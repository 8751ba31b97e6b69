"""Distortions of images: small movements, and damage with a strength that is solved for to match a pixel error.

To a human eye an image shifted by a pixel is the same image, and one that is blurred, noisy, blocky or faded is not, though
both may differ from the original by the same squared error. `triplets.py` uses this as the known answer.

All ranges are constants of this module, fixed before any score was seen. Lengths are in pixels of an image of 64 pixels a side
and grow with the image.

Legend: C = 3 channels, S pixels a side, b pixels a side of a block, k blocks along a side. Images are float64 CSS in [0, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 64  # pixels, of the image that the lengths below refer to
SHIFT = (1.0, 2.0)  # length of the movement, pixels
ROTATION = (2.0, 4.0)  # degrees, in either direction
CROP = (0.90, 0.96)  # side of the crop divided by the side of the image
BLUR = 64.0  # standard deviation at full strength, pixels
NOISE = 1.0  # standard deviation at full strength
BLOCK = 8.0  # pixels
STEP = 8.0  # quantization step of a block's coefficients at full strength; the largest possible coefficient is 8

MIN_ERROR = (1 / 255) ** 2  # mean squared; smaller errors are invisible
BISECTIONS = 16  # of the range of strengths

Damage = Callable[[float], np.ndarray]  # strength from 0, the image itself, to 1 -> damaged image


# Movements. Pixels from outside the frame are mirrored at its border.


def shift(x_CSS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift by whole pixels, at least one, in any direction."""
    S = x_CSS.shape[-1]
    length = max(1.0, rng.uniform(*SHIFT) * S / SIDE)
    angle = rng.uniform(0, 2 * math.pi)
    dx, dy = round(length * math.cos(angle)), round(length * math.sin(angle))
    return _affine(x_CSS, [[1, 0, 2 * dx / S], [0, 1, 2 * dy / S]])


def rotate(x_CSS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate about the centre, in either direction."""
    angle = math.radians(rng.uniform(*ROTATION)) * rng.choice([-1, 1])
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(x_CSS, [[cos, -sin, 0], [sin, cos, 0]])


def crop(x_CSS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop a narrow margin, of a different width on each side, and resize to the old size."""
    side = rng.uniform(*CROP)
    left, top = rng.uniform(side - 1, 1 - side, 2)
    return _affine(x_CSS, [[side, 0, left], [0, side, top]])


def _affine(x_CSS: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Sample the image at the positions that `matrix` maps pixels to; the image spans -1 to 1."""
    grid = F.affine_grid(torch.tensor([matrix], dtype=torch.float64), [1, *x_CSS.shape], align_corners=False)
    x_1CSS = torch.from_numpy(x_CSS)[None]
    moved_1CSS = F.grid_sample(x_1CSS, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    moved_CSS: np.ndarray = moved_1CSS[0].clamp(0, 1).numpy()
    return moved_CSS


# Damage. Each function returns the damaged image as a function of strength.


def blur(x_CSS: np.ndarray, rng: np.random.Generator) -> Damage:
    """Gaussian blur of the mirrored image: a factor on each coefficient of the cosine transform."""
    S = x_CSS.shape[-1]
    basis_SS = _cosines(S)
    frequency_S = math.pi * np.arange(S) / S
    spectrum_CSS = basis_SS @ x_CSS @ basis_SS.T

    def damage(strength: float) -> np.ndarray:
        keep_S = np.exp(-((strength * BLUR * S / SIDE * frequency_S) ** 2) / 2)
        blurred_CSS: np.ndarray = basis_SS.T @ (spectrum_CSS * np.outer(keep_S, keep_S)) @ basis_SS
        return blurred_CSS.clip(0, 1)

    return damage


def noise(x_CSS: np.ndarray, rng: np.random.Generator) -> Damage:
    """Independent Gaussian noise on every pixel and channel."""
    field_CSS = rng.standard_normal(x_CSS.shape)
    return lambda strength: np.clip(x_CSS + strength * NOISE * field_CSS, 0, 1)


def blocking(x_CSS: np.ndarray, rng: np.random.Generator) -> Damage:
    """Coarsely rounded cosine coefficients of blocks, as in heavy JPEG compression."""
    S = x_CSS.shape[-1]
    b = max(2, round(BLOCK * S / SIDE))
    k = -(-S // b)
    basis_bb = _cosines(b)
    padded = np.pad(x_CSS, ((0, 0), (0, k * b - S), (0, k * b - S)), mode="edge")
    spectrum_Ckkbb = basis_bb @ padded.reshape(-1, k, b, k, b).swapaxes(2, 3) @ basis_bb.T

    def damage(strength: float) -> np.ndarray:
        step = strength * STEP
        rounded_Ckkbb = np.rint(spectrum_Ckkbb / step) * step if step > 0 else spectrum_Ckkbb
        blocks_Ckkbb = basis_bb.T @ rounded_Ckkbb @ basis_bb
        damaged: np.ndarray = blocks_Ckkbb.swapaxes(2, 3).reshape(padded.shape)[:, :S, :S]
        return damaged.clip(0, 1)

    return damage


def fade(x_CSS: np.ndarray, rng: np.random.Generator) -> Damage:
    """Less contrast: every pixel is moved towards the mean grey of the image."""
    gray = x_CSS.mean()
    return lambda strength: x_CSS + strength * (gray - x_CSS)


@functools.cache
def _cosines(n: int) -> np.ndarray:
    """Matrix (n, n) of the orthonormal cosine transform (DCT-II): coefficients = matrix @ values."""
    basis_nn = np.cos(math.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)) * math.sqrt(2 / n)
    basis_nn[0] /= math.sqrt(2)
    return basis_nn


GEOMETRIC: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "shift": shift,
    "rotation": rotate,
    "crop": crop,
}
DAMAGE: dict[str, Callable[[np.ndarray, np.random.Generator], Damage]] = {
    "blur": blur,
    "noise": noise,
    "blocking": blocking,
    "contrast": fade,
}


def mean_squared_error(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of the squared differences of two images of the same shape."""
    return float(np.square(x - y).mean())


def match_error(damage: Damage, x_CSS: np.ndarray, error: float) -> np.ndarray | None:
    """Find the damaged image whose mean squared error to `x_CSS` is `error`, by bisection of the strength.

    The error may jump where a value reaches black or white. So the last two images, whose errors enclose `error` and which look the
    same, are mixed in the proportion that gives it exactly.

    Returns:
        The image; None if full strength is too weak.
    """
    low, high = 0.0, 1.0
    below, above = x_CSS, damage(high)
    if mean_squared_error(above, x_CSS) < error:
        return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        image = damage(middle)
        if mean_squared_error(image, x_CSS) < error:
            low, below = middle, image
        else:
            high, above = middle, image
    y_CSS: np.ndarray = below + _share(below - x_CSS, above - x_CSS, error) * (above - below)
    return y_CSS


def _share(below: np.ndarray, above: np.ndarray, error: float) -> float:
    """Share, 0 to 1, of `above` in a mixture with `below` that has a mean square of `error`, which lies between theirs."""
    step = above - below
    a, b, c = float(np.square(step).mean()), float((below * step).mean()), float(np.square(below).mean()) - error
    return (math.sqrt(max(0.0, b * b - a * c)) - b) / a if a > 0 else 0.0
