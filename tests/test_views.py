"""Views: drawn as numbers, replayed exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from peco.core import config
from peco.data import views

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


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


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
    image = picture(32, 32)
    view = views.draw(np.random.default_rng(0), PLAIN, 32, 32)
    assert np.array_equal(views.apply(image, view, 32), np.asarray(image))


def test_flip_mirrors_left_and_right() -> None:
    image = picture(16, 16)
    flipped = views.apply(image, views.View(0, 0, 16, 16, flip=True), 16)
    assert np.array_equal(flipped, np.asarray(image)[:, ::-1])


def test_grayscale_has_no_color_and_a_full_turn_of_hue_changes_nothing() -> None:
    image = picture(16, 16)
    gray = views.apply(image, views.View(0, 0, 16, 16, grayscale=True), 16)
    assert (gray[..., 0] == gray[..., 1]).all()
    turned = views.apply(image, views.View(0, 0, 16, 16, hue=0.5), 16).astype(int)
    back = views.apply(Image.fromarray(turned.astype(np.uint8)), views.View(0, 0, 16, 16, hue=-0.5), 16).astype(int)
    assert abs(back - np.asarray(image).astype(int)).mean() < 4


def test_solarize_inverts_only_bright_pixels() -> None:
    image = picture(16, 16)
    before, after = (
        np.asarray(image).astype(int),
        views.apply(image, views.View(0, 0, 16, 16, solarize=True), 16),
    )
    assert np.array_equal(after, np.where(before < views.SOLARIZE_THRESHOLD, before, 255 - before))


def test_a_view_of_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        views.apply(picture(10, 10), views.View(0, 0, 20, 10), 8)


def test_draws_follow_the_probabilities() -> None:
    drawn = [views.draw(np.random.default_rng(i), DISTRIBUTION, 64, 64) for i in range(2000)]
    for name, expected in (("flip", 0.5), ("grayscale", 0.2), ("blur", 0.5), ("solarize", 0.2)):
        assert abs(np.mean([bool(getattr(v, name)) for v in drawn]) - expected) < 0.04
    assert abs(np.mean([v.brightness != 1.0 for v in drawn]) - 0.8) < 0.04
