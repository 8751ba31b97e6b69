"""Decoding of encoded images to upright RGB, and their size from the header."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from peco.core.errors import PecoError

MIN_SIDE = 8  # pixels; a smaller image shows nothing
MAX_PIXELS = 89_478_485  # more are taken for a decompression bomb; Pillow warns from here on
# Without this list, Pillow tries all formats that it knows, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

Image.init()  # registers all formats: Image.open registers only the most common ones, and knows no others by name


def decode(encoded: bytes) -> Image.Image:
    """Decode an image file to mode RGB, upright by its EXIF orientation; of several frames the first.

    Transparent pixels are laid over white, 16 bits are scaled to 8; grey, palette, CMYK and other modes are converted.

    Raises:
        PecoError: not an image, damaged or truncated, a side under `MIN_SIDE`, or more than `MAX_PIXELS`.
    """
    if not encoded:
        raise PecoError("empty file")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if min(image.size) < MIN_SIDE:
                raise PecoError(f"a side under {MIN_SIDE} pixels")
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except (PecoError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise PecoError("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise PecoError(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # damaged files raise nearly any exception in Pillow's readers
        raise PecoError("truncated" if "truncated" in str(error).lower() else "can't be decoded") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise PecoError("floating-point pixels, which have no agreed range")
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of the image as `decode` returns it, from the header of its file.

    Raises:
        PecoError: there is no such file, or its header isn't that of an image that `decode` takes.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=FORMATS) as image,
        ):
            width, height = image.size
            if image.mode == "F":
                raise ValueError("floating-point pixels")
            # `decode` ignores values that EXIF doesn't define, some of which are not numbers.
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"a side under {MIN_SIDE} pixels")
        if width * height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS} pixels")
    except FileNotFoundError:
        raise PecoError(f"{path}: no such image; add it or remove its annotation") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise PecoError(f"{path}: can't be read as an image ({error}); fix or remove it and its annotation") from None
    return (height, width) if turned else (width, height)
