"""Decoding of encoded images to upright RGB, and their size from the header.

Pillow opens every file: it knows the format and reads size and EXIF orientation. Pixels of a JPEG of colour or grey come from
simplejpeg, all others from Pillow. Both use libjpeg-turbo with its accurate DCT and smooth chroma (`_PINNED`), in integers that are
the same on any CPU, so that a JPEG at full size has the same pixels from both; simplejpeg takes two thirds of the time. What it
refuses, if only for a warning, goes to Pillow, which reads it or names the damage.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from peco.core.errors import PecoError
from peco.core.parsing import reason

MIN_SIDE = 8  # pixels; a smaller image shows nothing
MAX_PIXELS = 89_478_485  # the default of `dataset.max_pixels`; more may be a decompression bomb
RANGE_16BIT = (0, 65535)  # the default of `dataset.range_16bit`

Image.init()  # registers all formats: Image.open registers only the most common ones, and knows no others by name
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit can't be raised for a single file; `check_size` is the limit here


class MissingExtra(PecoError):
    """An image of a format whose reader is not installed."""


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
# Of simplejpeg: the accurate DCT, smooth chroma, and no damaged data.
_PINNED = {"fastdct": False, "fastupsample": False, "strict": True}
# By EXIF orientation, for those that change the pixels: exchange rows and columns first; steps of rows and columns.
_TURNS: dict[object, tuple[bool, int, int]] = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Picture:
    """An upright RGB image.

    Args:
        pixels: uint8 (height, width, 3).
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def crop(self, box: Box, enough: int) -> NDArray[np.uint8]:
        """The pixels in a box, uint8 (H, W, 3): of its size or, to save time, of a lower one, but H and W are at least `enough`.

        Raises:
            PecoError: the image is damaged.
        """
        left, top, right, bottom = box
        return self._pixels[top:bottom, left:right]

    def to_pil(self) -> Image.Image:
        """The image at full size, for Pillow. Raises as `crop`."""
        return Image.fromarray(self.crop((0, 0, *self.size), max(self.size)))


class _Jpeg(Picture):
    """A JPEG of which the header was read. It is decoded when pixels are asked for, at 1, 1/2, 1/4 or 1/8 of its size.

    A crop of a reduced size begins and ends at whole pixels of that size.
    """

    def __init__(
        self, encoded: bytes, size: tuple[int, int], orientation: object, explain: Callable[[str], str]
    ) -> None:
        self._encoded, self._stored, self._explain = encoded, size, explain
        self._transposed, self._rows, self._columns = _TURNS.get(orientation, (False, 1, 1))
        self.width, self.height = size[::-1] if self._transposed else size
        self._decoded: dict[int, Picture] = {}  # by reduction; several views of an image are decoded once

    def crop(self, box: Box, enough: int) -> NDArray[np.uint8]:
        left, top, right, bottom = box
        reduction = next((r for r in (8, 4, 2) if min(right - left, bottom - top) >= r * enough), 1)
        if reduction not in self._decoded:
            self._decoded[reduction] = Picture(self._decode(reduction))
        reduced = self._decoded[reduction]
        if reduced.size == self.size:
            return reduced.crop(box, enough)
        # Sizes are rounded up, at the right and below; where the image was mirrored, this is on the left or above.
        x = reduced.width * reduction - self.width if self._columns < 0 else 0
        y = reduced.height * reduction - self.height if self._rows < 0 else 0
        edges = (left + x, top + y, right + x, bottom + y)
        left, top, right, bottom = ((edge + reduction // 2) // reduction for edge in edges)
        return reduced.crop((left, top, right, bottom), enough)

    def _decode(self, reduction: int) -> NDArray[np.uint8]:
        width, height = (-(-side // reduction) for side in self._stored)
        try:
            # Takes the smallest of its scales that has this size.
            stored = simplejpeg.decode_jpeg(self._encoded, "RGB", min_height=height, min_width=width, **_PINNED)
        except ValueError:
            with _explained(self._explain), open_image(self._encoded, ("JPEG",), self.width * self.height) as image:
                return _upright(image, RANGE_16BIT)
        upright: NDArray[np.uint8] = stored.transpose(1, 0, 2) if self._transposed else stored
        return upright[:: self._rows, :: self._columns]


def open_picture(
    encoded: bytes,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int | None = None,
    range_16bit: tuple[int, int] = RANGE_16BIT,
    explain: Callable[[str], str] = str,
) -> Picture:
    """Open an image file as RGB, upright by its EXIF orientation; of several frames the first.

    Transparent pixels are laid over white, 16 bits are scaled to 8; grey, palette, CMYK and other modes are converted.

    Args:
        encoded: the image file.
        formats: Pillow's names of the formats that it may have.
        max_pixels: a larger image is refused; by default MAX_PIXELS.
        range_16bit: values of 16-bit images that become 0 and 255; others are clipped.
        explain: from the reason of an error to its message.

    Raises:
        PecoError: not an image, damaged or truncated, a side under `MIN_SIDE`, or more than `max_pixels`. Damage behind the header
            of a JPEG is found when its pixels are read.
    """
    with _explained(explain), open_image(encoded, formats, max_pixels) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and _libjpeg_size(encoded) == image.size:
            return _Jpeg(encoded, image.size, image.getexif().get(ExifTags.Base.Orientation), explain)
        return Picture(_upright(image, range_16bit))


def decode(
    encoded: bytes,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int | None = None,
    range_16bit: tuple[int, int] = RANGE_16BIT,
) -> Image.Image:
    """Decode an image file as a whole. Arguments and errors are those of `open_picture`."""
    return open_picture(encoded, formats=formats, max_pixels=max_pixels, range_16bit=range_16bit).to_pil()


@contextlib.contextmanager
def open_image(
    encoded: bytes, formats: tuple[str, ...] = FORMATS, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """An image file of which only the header is read. Damage that is found within the block is an error in one line too.

    Raises:
        PecoError: as `open_picture`.
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
            raise MissingExtra("HEIC, which needs the extra `heif` (pip install pillow-heif)") from None
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


@contextlib.contextmanager
def _explained(explain: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except PecoError as error:
        raise type(error)(explain(str(error))) from None


def _libjpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG as libjpeg reads them, which decide how much memory it takes; None if it refuses the header."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):  # KeyError: rare subsampling
        return None
    return width, height


def _upright(image: Image.Image, range_16bit: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an opened image by Pillow."""
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(_to_rgb(image, range_16bit))


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
