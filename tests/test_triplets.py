"""Triplets: damage that is matched to a small movement in pixel error, and 2AFC items on disk."""

import io
import math
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.data.shards import open_shards
from peco.evaluate.agreement import distortions
from peco.evaluate.agreement.distortions import DAMAGE, GEOMETRIC, match_error, mean_squared_error
from peco.evaluate.agreement.triplets import PAIRS, TwoAfc, generate, generate_split
from peco.sources.base import Ignored, RawSample
from peco.sources.shard_writer import write_shards
from pipelines.workflow.compose import compose_params

DATASET = parse_params(compose_params("smoke", [])).dataset


def picture(size: int, seed: int = 0, roughness: float = 0.1) -> np.ndarray:
    """Blobs of colour with some noise, float64 CSS."""
    rng = np.random.default_rng(seed)
    blobs = scipy.ndimage.gaussian_filter(rng.random((3, size, size)), (0, size / 10, size / 10))
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    return (blobs + roughness * rng.standard_normal(blobs.shape)).clip(0, 1)


pictures = st.builds(
    picture, st.sampled_from([16, 24, 33, 64]), st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.1, 0.3])
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- movements


@given(pictures, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_shift_moves_by_one_or_two_pixels_at_64(x: np.ndarray, seed: int) -> None:
    y = distortions.shift(x, rng(seed))
    size = x.shape[-1]
    fits = [
        (dx, dy)
        for dx in range(-2, 3)
        for dy in range(-2, 3)
        if np.allclose(
            y[:, max(0, -dy) : size - max(0, dy), max(0, -dx) : size - max(0, dx)],
            x[:, max(0, dy) : size - max(0, -dy), max(0, dx) : size - max(0, -dx)],
            atol=1e-9,
        )
    ]
    assert fits
    assert (0, 0) not in fits
    assert math.hypot(*fits[0]) <= max(1, 2 * size / 64) + 0.71  # whole pixels


def test_lengths_grow_with_the_image() -> None:
    moves = []
    for seed in range(20):
        y = distortions.shift(np.tile(np.arange(256.0) / 256, (3, 256, 1)), rng(seed))
        moves.append(abs(y[0, 0, 128] * 256 - 128))
    assert 4 < max(moves) <= 8  # 2 pixels at 64


@pytest.mark.parametrize("seed", range(4))
def test_rotation_agrees_with_scipy(seed: int) -> None:
    x = picture(64, roughness=0.0)
    angle = rng(seed).uniform(*distortions.ROTATION)
    found = distortions.rotate(x, rng(seed))
    errors = [
        np.abs(found - scipy.ndimage.rotate(x, sign * angle, (1, 2), reshape=False, order=3))[:, 8:-8, 8:-8].max()
        for sign in (-1, 1)
    ]
    assert 2 <= angle <= 4
    assert min(errors) < 0.01 < max(errors)


def test_crop_magnifies_a_little() -> None:
    ramp = np.tile(np.linspace(0, 1, 64), (3, 64, 1))
    for seed in range(10):
        slope = np.diff(distortions.crop(ramp, rng(seed))[0, 32, 10:-10]).mean() * 63
        assert 0.90 <= slope <= 0.96


# --- damage


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_starts_at_zero_and_grows(name: str) -> None:
    x = picture(64)
    damage = DAMAGE[name](x, rng())
    errors = [mean_squared_error(damage(strength), x) for strength in (0, 0.01, 0.03, 0.1, 0.3, 1)]
    assert errors[0] < 1e-28
    assert errors == sorted(errors)
    assert 0 <= damage(0.3).min() <= damage(0.3).max() <= 1


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_blur_agrees_with_scipy(sigma: float) -> None:
    x = picture(64)
    expected = scipy.ndimage.gaussian_filter(x, (0, sigma, sigma), mode="reflect", truncate=10)
    np.testing.assert_allclose(distortions.blur(x, rng())(sigma / distortions.BLUR), expected, atol=1e-6)


def test_blocking_agrees_with_scipy() -> None:
    x, step = picture(64), 0.3
    expected = np.empty_like(x)
    for top in range(0, 64, 8):
        for left in range(0, 64, 8):
            block = x[:, top : top + 8, left : left + 8]
            coefficients = scipy.fft.dctn(block, axes=(1, 2), norm="ortho")
            rounded = np.round(coefficients / step) * step
            expected[:, top : top + 8, left : left + 8] = scipy.fft.idctn(rounded, axes=(1, 2), norm="ortho")
    found = distortions.blocking(x, rng())(step / distortions.STEP)
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-9)


def test_full_fading_leaves_gray() -> None:
    x = picture(32)
    assert np.ptp(distortions.fade(x, rng())(1.0)) < 1e-12


# --- pairs matched in pixel error


@given(pictures, st.sampled_from(sorted(DAMAGE)), st.floats(1e-5, 0.05))
@settings(max_examples=60, deadline=None)
def test_damage_is_matched_or_too_weak(x: np.ndarray, name: str, error: float) -> None:
    damage = DAMAGE[name](x, rng())
    y = match_error(damage, x, error)
    if y is None:
        assert mean_squared_error(damage(1.0), x) < error
    else:
        assert mean_squared_error(y, x) == pytest.approx(error, rel=1e-6)  # 1 % would be enough
        assert -1e-12 <= y.min() <= y.max() <= 1 + 1e-12


@given(pictures, st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_both_views_of_a_pair_have_the_same_pixel_error(x: np.ndarray, index: int) -> None:
    triplets = generate(x, index)
    for pair, view in triplets.damaged.items():
        moved = triplets.moved[pair.partition("_")[0]]
        assert mean_squared_error(view, x) == pytest.approx(mean_squared_error(moved, x), rel=1e-6)


def test_an_image_gives_a_triplet_of_every_pair() -> None:
    assert len(PAIRS) == len(GEOMETRIC) * len(DAMAGE) == 12
    triplets = generate(picture(64), 0)
    assert set(triplets.damaged) == set(PAIRS)
    assert list(triplets.moved) == list(GEOMETRIC)


def test_triplets_depend_on_image_and_index_alone() -> None:
    first, again, other = (generate(picture(32), index) for index in (3, 3, 4))
    for pair in PAIRS:
        assert np.array_equal(first.damaged[pair], again.damaged[pair])
        assert not np.array_equal(first.damaged[pair], other.damaged[pair])


def test_a_flat_image_gives_no_triplets() -> None:
    assert generate(np.full((3, 32, 32), 0.4), 0).damaged == {}


def test_pairs_that_cannot_be_matched_are_left_out() -> None:
    fine = np.indices((64, 64)).sum(axis=0) % 2 * np.ones((3, 1, 1))  # shifted by a pixel it is its own negative
    found = [generate(fine, index) for index in range(20)]
    assert any("shift_contrast" not in triplets.damaged for triplets in found)


# --- from shards


class Blobs:
    """Images without labels, train only."""

    classes = ()
    total: int | None = None

    def __init__(self) -> None:
        self.ignored, self.notes = Ignored(), list[str]()

    def samples(self) -> Iterator[RawSample]:
        for i in range(5):
            yield RawSample("train", f"{i}.png", png(picture(40, i)), -1)


def png(x: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray((x.transpose(1, 2, 0) * 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_references_are_the_first_images_of_a_split(tmp_path: Path) -> None:
    write_shards(Blobs(), tmp_path / "shards", DATASET, work=tmp_path / "work", workers=1)
    split = open_shards(tmp_path / "shards", "train")
    found = list(generate_split(split, 32, count=3))
    assert len(found) == 3
    assert len(list(generate_split(split, 32, count=9))) == 5
    for index, triplets in enumerate(found):
        assert triplets.reference.shape == (3, 32, 32)
        again = generate(triplets.reference, index)
        assert all(np.array_equal(again.damaged[pair], view) for pair, view in triplets.damaged.items())


# --- 2AFC


def save(file: Path, content: bytes | float | np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, np.atleast_1d(np.float32(content)))


@pytest.fixture
def bapps(tmp_path: Path) -> Path:
    """Two categories of two items each in the layout of BAPPS, and a file that belongs to no item."""
    root = tmp_path / "2afc"
    for number, category in enumerate(("val/cnn", "val/traditional")):
        for item in range(2):
            for place, member in enumerate(("ref", "p0", "p1")):
                save(
                    root / category / member / f"{item:06}.png", png(picture(48, seed=10 * number + item + 100 * place))
                )
            save(root / category / "judge" / f"{item:06}.npy", 0.2 * (number + 2 * item))
    save(root / "val" / "README.txt", b"from somewhere")
    return root


def archived(root: Path, file: Path, mode: str) -> Path:
    with tarfile.open(file, mode) as archive:
        archive.add(root, arcname=".")
    return file


def test_items_are_read_by_category_and_name(bapps: Path, tmp_path: Path) -> None:
    items = TwoAfc(bapps, tmp_path / "work")
    assert [(item.category, item.name) for item in items.items] == [
        ("val/cnn", "000000"),
        ("val/cnn", "000001"),
        ("val/traditional", "000000"),
        ("val/traditional", "000001"),
    ]
    assert [item.judge for item in items.items] == pytest.approx([0.0, 0.4, 0.2, 0.6])
    assert items.categories == {"val/cnn": 2, "val/traditional": 2}
    reference, p0, p1 = items.images(1, 48)
    for found, seed in ((reference, 1), (p0, 101), (p1, 201)):
        np.testing.assert_array_equal(found, np.floor(picture(48, seed) * 255) / 255)
    assert [image.shape for image in items.images(0, 32)] == [(3, 32, 32)] * 3


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_reads_as_its_folder(bapps: Path, tmp_path: Path, mode: str) -> None:
    folder = TwoAfc(bapps, tmp_path / "work")
    archive = TwoAfc(archived(bapps, tmp_path / "2afc.tar", mode), tmp_path / "work")
    assert archive.items == folder.items
    np.testing.assert_array_equal(archive.images(2, 48), folder.images(2, 48))


def test_a_category_can_be_read_by_itself(bapps: Path, tmp_path: Path) -> None:
    items = TwoAfc(bapps / "val" / "cnn", tmp_path / "work")
    assert items.categories == {"all": 2}


def test_flat_files_are_items_too(tmp_path: Path) -> None:
    for name in ("ex", "two_words"):
        for member in ("ref", "p0", "p1"):
            save(tmp_path / "flat" / f"{name}_{member}.png", png(picture(48)))
    items = TwoAfc(tmp_path / "flat", tmp_path / "work")
    assert [(item.category, item.name, item.judge) for item in items.items] == [
        ("all", "ex", None),
        ("all", "two_words", None),
    ]
    for name in ("ex", "two_words"):
        save(tmp_path / "flat" / f"{name}_judge.npy", 1.0)
    assert [item.judge for item in TwoAfc(tmp_path / "flat", tmp_path / "work").items] == [1.0, 1.0]


def test_a_category_without_votes_is_read(bapps: Path, tmp_path: Path) -> None:
    for file in (bapps / "val" / "cnn" / "judge").iterdir():
        file.unlink()
    assert [item.judge is None for item in TwoAfc(bapps, tmp_path / "work").items] == [True, True, False, False]


@pytest.mark.parametrize("member", ["ref/000001.png", "p0/000001.png", "p1/000001.png", "judge/000001.npy"])
def test_a_missing_member_is_a_one_line_error(bapps: Path, tmp_path: Path, member: str) -> None:
    (bapps / "val" / "cnn" / member).unlink()
    name = member.partition("/")[0]
    with pytest.raises(
        PecoError, match=f"triplet 000001 of val/cnn has no {name} .*; add it or remove the rest"
    ) as error:
        TwoAfc(bapps, tmp_path / "work")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vote", [1.5, -0.1, math.nan, np.zeros(2), b"", b"no array"])
def test_a_vote_that_is_no_share_is_refused(bapps: Path, tmp_path: Path, vote: float | np.ndarray | bytes) -> None:
    save(bapps / "val" / "cnn" / "judge" / "000000.npy", vote)
    with pytest.raises(PecoError, match=r"val/cnn/judge/000000\.npy: not a vote; expected an \.npy of one number"):
        TwoAfc(bapps, tmp_path / "work")


def test_a_pickled_vote_is_not_loaded(bapps: Path, tmp_path: Path) -> None:
    np.save(bapps / "val" / "cnn" / "judge" / "000000.npy", np.array([{"vote": 1}], dtype=object))
    with pytest.raises(PecoError, match="not a vote"):
        TwoAfc(bapps, tmp_path / "work")


def test_views_of_different_sizes_are_refused(bapps: Path, tmp_path: Path) -> None:
    save(bapps / "val" / "cnn" / "p1" / "000001.png", png(picture(47)))
    with pytest.raises(PecoError, match=r"val/cnn/p1/000001\.png has 47x47 pixels, its reference 48x48"):
        TwoAfc(bapps, tmp_path / "work").images(1, 48)


def test_a_broken_image_is_named(bapps: Path, tmp_path: Path) -> None:
    save(bapps / "val" / "cnn" / "p0" / "000001.png", b"no image")
    with pytest.raises(PecoError, match=r"val/cnn/p0/000001\.png: not an image of a known format; fix or remove"):
        TwoAfc(bapps, tmp_path / "work").images(1, 48)


def test_a_member_with_two_files_is_refused(bapps: Path, tmp_path: Path) -> None:
    save(bapps / "val" / "cnn" / "p0" / "000001.jpg", b"")
    with pytest.raises(PecoError, match="are the same member of a triplet; keep one"):
        TwoAfc(bapps, tmp_path / "work")


def test_a_folder_without_triplets_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png", png(picture(48)))
    with pytest.raises(PecoError, match="no triplets found; expected ref, p0, p1 and judge folders"):
        TwoAfc(tmp_path / "photos", tmp_path / "work")
    with pytest.raises(PecoError, match="no such file or folder"):
        TwoAfc(tmp_path / "nowhere", tmp_path / "work")


@pytest.mark.data
def test_a_sample_of_a_triplet_without_votes_is_read(tmp_path: Path) -> None:
    folder = os.environ.get("PECO_TEST_DATA")
    if not folder or not (Path(folder) / "format_samples.tar").is_file():
        pytest.skip("PECO_TEST_DATA names no folder with format_samples.tar")
    items = TwoAfc(Path(folder) / "format_samples.tar", tmp_path)
    assert [(item.category, item.name, item.judge) for item in items.items] == [("triplet", "ex", None)]
    reference, p0, p1 = items.images(0, 64)
    assert mean_squared_error(reference, p0) > 1e-4
    assert mean_squared_error(p0, p1) > 1e-4
