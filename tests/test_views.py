"""Views: drawn as numbers, replayed exactly."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from peco.core import config
from peco.data import views
from peco.data.images import Picture

DISTRIBUTION = config.ViewDistribution(
    scale=(0.1, 1.0),
    ratio=(0.75, 1.3333),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_prob=0.8,
    grayscale=0.2,
    blur=0.5,
    solarize=0.2,
)
PLAIN = config.ViewDistribution(
    scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=(0, 0, 0, 0), jitter_prob=0, grayscale=0, blur=0, solarize=0
)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(width: int, height: int) -> Picture:
    return Picture(noise(width, height))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 300))
def test_a_view_survives_storage_and_gives_the_same_pixels(seed: int, width: int, height: int) -> None:
    view = views.draw(np.random.default_rng(seed), DISTRIBUTION, width, height)
    stored = views.from_record(views.to_record(view))
    assert stored == view
    image = picture(width, height)
    pixels = views.apply(image, view, 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, views.apply(image, stored, 16))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 300), st.integers(20, 300))
def test_crops_lie_inside_and_follow_the_distribution(seed: int, width: int, height: int) -> None:
    view = views.draw(np.random.default_rng(seed), DISTRIBUTION, width, height)
    assert 0 <= view.left <= width - view.width
    assert 0 <= view.top <= height - view.height
    area = view.width * view.height / (width * height)
    centered = views.center(width, height)
    assert 0.1 - 0.05 <= area <= 1 or (view.width, view.height) == (centered.width, centered.height)


def test_the_plain_distribution_changes_nothing() -> None:
    view = views.draw(np.random.default_rng(0), PLAIN, 32, 32)
    assert np.array_equal(views.apply(picture(32, 32), view, 32), noise(32, 32))


def test_flip_mirrors_left_and_right() -> None:
    flipped = views.apply(picture(16, 16), views.View(0, 0, 16, 16, flip=True), 16)
    assert np.array_equal(flipped, noise(16, 16)[:, ::-1])


def test_grayscale_has_no_color_and_a_full_turn_of_hue_changes_nothing() -> None:
    image = picture(16, 16)
    gray = views.apply(image, views.View(0, 0, 16, 16, grayscale=True), 16)
    assert (gray[..., 0] == gray[..., 1]).all()
    turned = views.apply(image, views.View(0, 0, 16, 16, hue=0.5), 16).astype(int)
    back = views.apply(Picture(turned.astype(np.uint8)), views.View(0, 0, 16, 16, hue=-0.5), 16).astype(int)
    assert abs(back - noise(16, 16).astype(int)).mean() < 4


def test_solarize_inverts_only_bright_pixels() -> None:
    before, after = noise(16, 16).astype(int), views.apply(picture(16, 16), views.View(0, 0, 16, 16, solarize=True), 16)
    assert np.array_equal(after, np.where(before < views.SOLARIZE_THRESHOLD, before, 255 - before))


def test_a_view_of_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        views.apply(picture(10, 10), views.View(0, 0, 20, 10), 8)


def test_draws_follow_the_probabilities() -> None:
    drawn = [views.draw(np.random.default_rng(i), DISTRIBUTION, 64, 64) for i in range(2000)]
    for name, expected in (("flip", 0.5), ("grayscale", 0.2), ("blur", 0.5), ("solarize", 0.2)):
        assert abs(np.mean([bool(getattr(v, name)) for v in drawn]) - expected) < 0.04
    assert abs(np.mean([v.brightness != 1.0 for v in drawn]) - 0.8) < 0.04


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([8, 32, 64, 224]))
def test_crops_are_those_of_pillow_to_two_levels_and_colors_are_exact(seed: int, size: int) -> None:
    colors = dataclasses.replace(
        DISTRIBUTION, jitter=(0.4, 0.4, 0.4, 0), jitter_prob=1, grayscale=0, blur=0, solarize=0
    )
    view = views.draw(np.random.default_rng(seed), colors, 300, 200)
    image, box = picture(300, 200), (view.left, view.top, view.left + view.width, view.top + view.height)
    plain = views.apply(image, dataclasses.replace(view, brightness=1.0, contrast=1.0, saturation=1.0), size)
    expected = image.to_pil().crop(box).resize((size, size), Image.Resampling.BICUBIC)
    flipped = np.asarray(expected)[:, ::-1] if view.flip else np.asarray(expected)
    assert abs(plain.astype(int) - flipped.astype(int)).max() <= 2
    changed = Image.fromarray(plain)
    for enhance, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.saturation),
    ):
        changed = enhance(changed).enhance(factor)
    assert np.array_equal(views.apply(image, view, size), np.asarray(changed))


VIEWS_OF_NOISE = """
import dataclasses, hashlib, sys
import numpy as np
from peco.core import config
from peco.data import views
from peco.data.images import Picture

rng, digest = np.random.default_rng(0), hashlib.sha256()
distribution = config.ViewDistribution((0.02, 1.0), (0.5, 2.0), 0.5, (0.4, 0.4, 0.4, 0), 0.5, 0, 0, 0)
image = Picture(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
for _ in range(300):
    view = views.draw(rng, distribution, 500, 375)
    digest.update(np.ascontiguousarray(views.apply(image, view, int(rng.choice([16, 33, 64, 224])))))
print(digest.hexdigest())
"""
SHA256 = "df22adc22187e0ce627ae8eed30e5595c819d7b8fd0baf2c15a052e1faa61d15"


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_pixels_are_the_same_with_any_instructions_of_the_cpu(capability: str) -> None:
    """torch falls back to what the CPU has. The digest makes a change of bytes by a new version of a library visible."""
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", VIEWS_OF_NOISE], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SHA256
