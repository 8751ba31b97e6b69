"""Checks of single images, and the bytes that are stored in the shards."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from peco.core import config
from peco.core.errors import PecoError
from peco.data.images import FORMATS, RANGE_16BIT, MissingExtra, decode, open_image, upper_bits, values_16bit
from peco.files.names import UNREADABLE_EXTENSIONS, extension
from peco.sources.base import RawSample

_JPEG_QUALITY = 92  # of images that are shrunk
_CONVERTED_QUALITY = 95  # of images of other formats, which are stored as JPEG so that webdataset reads them
_CONVERTED = ("HEIF", "AVIF", "JPEG2000")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # other formats: their names in lower case


@dataclass(frozen=True)
class CheckedImage:
    """The result of checking an image: the bytes to store and their extension, or the reason of its rejection.

    `values` are the lowest and highest of a 16-bit grey image, `upper` those of a 16-bit colour image.
    """

    encoded: bytes = b""
    extension: str = ""
    reason: str = ""
    values: tuple[int, int] | None = None
    upper: tuple[int, int] | None = None


def check_header(name: str, encoded: bytes, max_pixels: int) -> None:
    """Check what can be seen without decoding an image.

    Raises:
        PecoError: it would be rejected; the message is the reason.
    """
    with open_image(encoded, _formats(name), max_pixels):
        pass


def check_image(raw: RawSample, dataset: config.Dataset) -> CheckedImage:
    """Decode an image once, and convert it where the shards don't keep its bytes.

    Raises:
        PecoError: its format needs an extra that is not installed.
    """
    resize = dataset.resize
    try:
        formats = _formats(raw.name)
        image = decode(raw.encoded, formats=formats, max_pixels=dataset.max_pixels, range_16bit=dataset.range_16bit)
    except MissingExtra as error:
        raise PecoError(f"{dataset.path}: {raw.name}: {error}, or convert it to JPEG") from None
    except PecoError as error:
        return CheckedImage(reason=str(error))
    with Image.open(io.BytesIO(raw.encoded), formats=formats) as original:  # reads only the header
        kind = str(original.format)
        values = values_16bit(raw.encoded) if original.mode.startswith("I") else None
    upper = upper_bits(raw.encoded) if kind in ("PNG", "TIFF") else None
    short = min(image.size)
    if resize is not None and short > resize:
        width, height = (max(resize, round(side * resize / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        as_png, quality = kind in ("PNG", "TGA"), _JPEG_QUALITY
    elif kind in _CONVERTED:
        as_png, quality = False, _CONVERTED_QUALITY
    elif kind == "TGA" or (values and dataset.range_16bit != RANGE_16BIT):
        as_png, quality = True, 0
    else:
        return CheckedImage(raw.encoded, _EXTENSIONS.get(kind, kind.lower()), values=values, upper=upper)
    out = io.BytesIO()
    if as_png:
        image.save(out, "PNG")
        return CheckedImage(out.getvalue(), "png", values=values, upper=upper)
    image.save(out, "JPEG", quality=quality)
    return CheckedImage(out.getvalue(), "jpg", values=values, upper=upper)


def _formats(name: str) -> tuple[str, ...]:
    """Pillow's formats that an image of this name may have.

    Raises:
        PecoError: it isn't read by its extension. (Many raw formats of cameras hold a small TIFF, which is not the photo.)
    """
    ending = extension(name)
    if ending in UNREADABLE_EXTENSIONS:
        raise PecoError(f"a format that is not read ({ending.upper()})")
    return ("TGA",) if ending == "tga" else FORMATS
