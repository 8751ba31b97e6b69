"""Decoding of encoded images to upright RGB, and their size from the header."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from peco.core.errors import PecoError
from peco.core.parsing import reason

MIN_SIDE = 8  # pixels; a smaller image shows nothing
MAX_PIXELS = 89_478_485  # the default of `dataset.max_pixels`; more may be a decompression bomb
RANGE_16BIT = (0, 65535)  # the default of `dataset.range_16bit`

Image.init()  # registers all formats: Image.open registers only the most common ones, and knows no others by name
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit can't be raised for a single file; `check_size` is the limit here


def _registers_heif() -> bool:
    """Register HEIF with Pillow; False if the extra `heif` is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


READS_HEIF = _registers_heif()
# Without this list, Pillow tries all formats that it knows, some of which start other programs. TGA is missing since its files have
# no mark of their own: it is read only where the name of a file says so.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", *(("HEIF",) if READS_HEIF else ()))
# Exceptions of Pillow's readers on damaged files.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError),
    *(RuntimeError, NotImplementedError, ZeroDivisionError, AssertionError, struct.error, zlib.error),
)
_LFS_POINTER = b"version https://git-lfs.github.com/"
_BITS_PER_SAMPLE = 258  # tag of TIFF
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def decode(
    encoded: bytes,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int | None = None,
    range_16bit: tuple[int, int] = RANGE_16BIT,
) -> Image.Image:
    """Decode an image file to mode RGB, upright by its EXIF orientation; of several frames the first.

    Transparent pixels are laid over white, 16 bits are scaled to 8; grey, palette, CMYK and other modes are converted.

    Args:
        encoded: the image file.
        formats: Pillow's names of the formats that it may have.
        max_pixels: a larger image is refused; by default MAX_PIXELS.
        range_16bit: values of 16-bit images that become 0 and 255; others are clipped.

    Raises:
        PecoError: not an image, damaged or truncated, a side under `MIN_SIDE`, or more than `max_pixels`.
    """
    with open_image(encoded, formats, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, range_16bit)


@contextlib.contextmanager
def open_image(
    encoded: bytes, formats: tuple[str, ...] = FORMATS, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """An image file of which only the header is read. Damage that is found within the block is an error in one line too.

    Raises:
        PecoError: as `decode`.
    """
    if not encoded:
        raise PecoError("empty file")
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            check_size(image, max_pixels)
            yield image
    except UnidentifiedImageError:
        if encoded.startswith(_LFS_POINTER):
            raise PecoError("a pointer of Git LFS, not the image (`git lfs pull` fetches it)") from None
        if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS and not READS_HEIF:
            raise PecoError("HEIC, which needs the extra `heif` (pip install pillow-heif)") from None
        raise PecoError("not an image of a known format") from None
    except DAMAGE as error:
        raise PecoError("truncated" if "truncated" in str(error).lower() else "can't be decoded") from None


def check_size(image: Image.Image, max_pixels: int | None = None) -> None:
    """Check the size of an image that was opened but not yet decoded.

    Raises:
        PecoError: a side is under `MIN_SIDE`, or it has more than `max_pixels` (by default MAX_PIXELS).
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if min(image.size) < MIN_SIDE:
        raise PecoError(f"a side under {MIN_SIDE} pixels")
    if image.width * image.height > limit:
        raise PecoError(f"more than {limit} pixels")


def values_16bit(encoded: bytes) -> tuple[int, int] | None:
    """Lowest and highest value of a 16-bit grey image that can be decoded; None for any other image."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if not image.mode.startswith("I"):
            return None
        values = np.asarray(image)
        return int(values.min()), int(values.max())


def upper_bits(encoded: bytes) -> tuple[int, int] | None:
    """Lowest and highest value, scaled to 16 bits, of a colour image of 16 bits; None for any other image.

    Pillow reads only the upper 8 bits of these, so that `range_16bit` can't be applied to them.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.format == "PNG":
            is_deep = encoded[24] == 16 and not image.mode.startswith("I")  # the bit depth of the header
        elif image.format == "TIFF":
            is_deep = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8 and image.mode in (
                "RGB",
                "RGBA",
                "RGBX",
            )
        else:
            return None
        if not is_deep:
            return None
        values = np.asarray(image.convert("RGB"))
        return int(values.min()) * 257, int(values.max()) * 257


def image_reason(error: BaseException) -> str:
    """Why an image can't be opened, in a few words: one of the exceptions in DAMAGE, or a PecoError."""
    return "not an image of a known format" if isinstance(error, UnidentifiedImageError) else reason(error)


def _to_rgb(image: Image.Image, range_16bit: tuple[int, int]) -> Image.Image:
    if image.mode == "F":
        raise PecoError("floating-point pixels, which have no agreed range")
    if image.mode.startswith("I"):
        low, high = range_16bit
        span = high - low
        values = np.clip(np.asarray(image).astype(np.int64) - low, 0, span)
        image = Image.fromarray(((values * 255 + span // 2) // span).astype(np.uint8))
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
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            check_size(image)
            if image.mode == "F":
                raise ValueError("floating-point pixels")
            # `decode` ignores values that EXIF doesn't define, some of which are not numbers.
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except FileNotFoundError:
        raise PecoError(f"{path}: no such image; add it or remove its annotation") from None
    except (PecoError, *DAMAGE) as error:
        raise PecoError(
            f"{path}: can't be read as an image ({image_reason(error)}); fix or remove it and its annotation"
        ) from None
    return (height, width) if turned else (width, height)
