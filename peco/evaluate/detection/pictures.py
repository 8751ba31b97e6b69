"""Pictures of images with boxes, masks and class names."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from peco.annotations.sets import Objects
from peco.evaluate.detection.model import Detections

# Pixels along the longer side; smaller images are enlarged by whole factors, larger ones reduced.
MIN_SIDE, MAX_SIDE = 256, 480
OPACITY = 0.45  # of a mask's colour over the image
FONT_SIZE = 14


def draw(
    image: Image.Image, found: Objects | Detections, classes: Sequence[str], limit: int | None = None
) -> Image.Image:
    """Draw objects, or detections with their scores, on an image, the highest score on top.

    Args:
        image: RGB.
        found: objects or detections, in pixels of the image.
        classes: names.
        limit: maximum number of detections, those of the highest scores.
    """
    scores = found.scores if isinstance(found, Detections) else np.ones(len(found.labels), dtype=np.float32)
    shown = np.argsort(-scores, kind="stable")[:limit][::-1].tolist()
    pixels = np.asarray(image, dtype=np.float32)
    for n in shown:
        if found.masks is not None:
            color_3 = np.array(_color(found.labels[n]), dtype=np.float32)
            pixels = np.where(found.masks[n][..., None], (1 - OPACITY) * pixels + OPACITY * color_3, pixels)
    canvas, factor = _resized(np.rint(pixels).astype(np.uint8))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for n in shown:
        x0, y0, x1, y1 = (factor * found.boxes[n]).round().tolist()
        color = _color(found.labels[n])
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
        name = classes[found.labels[n]]
        text = f"{name} {scores[n]:.2f}" if isinstance(found, Detections) else name
        corner = (x0, max(0, y0 - FONT_SIZE - 2))
        pen.rectangle(pen.textbbox(corner, text, font), fill=color)
        pen.text(corner, text, fill="white", font=font)
    return canvas


def _resized(pixels: NDArray[np.uint8]) -> tuple[Image.Image, float]:
    """Resize a picture for display; also returns the factor."""
    picture, longer = Image.fromarray(pixels), max(pixels.shape[:2])
    if longer > MAX_SIDE:
        width, height = (max(1, round(side * MAX_SIDE / longer)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC), MAX_SIDE / longer
    factor = -(-MIN_SIDE // longer)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST), float(factor)


def _color(label: int) -> tuple[int, int, int]:
    """Dark, saturated colour of a class; consecutive classes have very different ones."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.85, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
