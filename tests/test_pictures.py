"""Pictures: the pixels of a JPEG are Pillow's, upright and at reduced sizes too; damage is named, never filled up."""

from __future__ import annotations

import io

import numpy as np
import pytest
from image_sets import encoded
from PIL import Image, ImageOps

from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import Picture, open_picture
from peco.data.shards import Sample

WIDTH, HEIGHT = 176, 136


def photo(mode: str = "RGB") -> Image.Image:
    """Smooth colours with some texture."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
    pixels = np.asarray(smooth).astype(float) + rng.normal(0, 8, (HEIGHT, WIDTH, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(mode: str = "RGB", orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(mode), "JPEG", exif=exif, **options)


def by_pillow(data: bytes, reduction: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (image.width // reduction, image.height // reduction))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def whole(picture: Picture, enough: int) -> np.ndarray:
    return picture.crop((0, 0, *picture.size), enough)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "data",
    [
        *(jpeg(quality=quality, subsampling=s) for quality, s in ((30, 2), (90, 2), (90, 1), (100, 0))),
        jpeg(progressive=True),
        jpeg("L"),
        encoded(photo(), "MPO", save_all=True, append_images=[photo()]),
        *(jpeg(orientation=number) for number in range(2, 9)),
    ],
)
def test_a_jpeg_has_the_pixels_of_pillow_at_each_size(data: bytes, reduction: int) -> None:
    picture, expected = open_picture(data), by_pillow(data, reduction)
    assert np.array_equal(whole(picture, enough=HEIGHT // reduction), expected)
    assert expected.shape[:2] == (picture.height // reduction, picture.width // reduction)
    assert np.array_equal(picture.to_pil(), by_pillow(data))


@pytest.mark.parametrize("data", [jpeg("CMYK"), encoded(photo(), "PNG"), encoded(photo("L"), "TIFF")])
def test_other_images_are_read_by_pillow_at_full_size(data: bytes) -> None:
    assert np.array_equal(whole(open_picture(data), enough=8), by_pillow(data))


def test_a_jpeg_with_a_warning_is_read_by_pillow() -> None:
    data = jpeg()
    data = data[:-400] + b"\xff\xd3" + data[-400:]  # a restart marker, where the header announces none
    assert np.array_equal(whole(open_picture(data), enough=8), by_pillow(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("reduction", [1, 2, 8])
def test_a_truncated_jpeg_is_an_error_that_names_the_sample(
    options: dict[str, bool], share: float, reduction: int
) -> None:
    data = jpeg(**options)
    sample = Sample(1, "0001-x", data[: int(share * len(data))], 0, shard="s/train-00000.tar")
    with pytest.raises(PecoError, match=r"s/train-00000.tar: sample 0001-x: truncated; run `dvc checkout`"):
        whole(sample.open(), enough=HEIGHT // reduction)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_view_is_that_of_the_upright_pixels(orientation: int) -> None:
    data = jpeg(orientation=orientation)
    view = views.View(left=11, top=7, width=90, height=100, flip=True)
    expected = views.apply(Picture(by_pillow(data)), view, 32)
    assert np.array_equal(views.apply(open_picture(data), view, 32), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("size", "reduction"), [(28, 1), (27, 2), (13, 4)])
def test_the_view_of_a_reduced_jpeg_is_in_its_place(orientation: int, size: int, reduction: int) -> None:
    """To half a pixel of the reduced image: levels of red and green tell the place in the file."""
    x, y = np.meshgrid(np.linspace(0, 255, 173), np.linspace(0, 255, 130))  # no whole blocks
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramps = Image.fromarray(np.stack([x, y, x], axis=2).astype(np.uint8))
    data = encoded(ramps, "JPEG", exif=exif, quality=100, subsampling=0)
    picture, view = open_picture(data), views.View(left=9, top=15, width=112, height=109)
    height, width, _ = picture.crop((9, 15, 121, 124), 2 * size).shape
    assert abs(height - 109 / reduction) <= 1 and abs(width - 112 / reduction) <= 1
    found, exact = (views.apply(p, view, size).astype(float) for p in (picture, Picture(by_pillow(data))))
    level = 255 / 130  # of a pixel, at most
    assert abs(found - exact).max() <= (reduction / 2 * level if reduction > 1 else 0) + 2
