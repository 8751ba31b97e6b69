"""Block-wise masks: exact counts, size and aspect of blocks, determined by the generator alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peco.core import config
from peco.mim.masking import _block_size, block_mask

BEIT = config.Masking(count=75, min_block=16, min_aspect=0.3)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, config.Masking]:
    height, width = draw(st.integers(1, 20)), draw(st.integers(2, 20))
    count = draw(st.integers(1, height * width - 1))
    return height, width, config.Masking(count, draw(st.integers(1, count)), draw(st.floats(0.01, 1)))


@given(grids(), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_masks_exactly_the_count(grid: tuple[int, int, config.Masking], seed: int) -> None:
    height, width, masking = grid
    mask = block_mask(np.random.default_rng(seed), height, width, masking)
    assert mask.shape == (height, width) and mask.dtype == bool
    assert mask.sum() == masking.count


def test_equal_seed_gives_equal_mask_and_another_seed_another() -> None:
    first, again, other = (block_mask(np.random.default_rng(seed), 14, 14, BEIT) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("area", [16.0, 29.3, 75.0])
@pytest.mark.parametrize("aspect", [0.3, 0.77, 1.0, 1 / 0.3])
def test_a_block_covers_its_area_near_its_aspect(area: float, aspect: float) -> None:
    rows, columns = _block_size(area, aspect, 14, 14)
    assert area <= rows * columns < area + rows + columns
    exact_rows, exact_columns = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    if exact_columns <= 13 and exact_rows <= 13:
        assert abs(rows - exact_rows) <= 0.5
        assert abs(columns - exact_columns) <= 0.5 + 0.5 * exact_columns / rows + 1


def test_a_block_that_does_not_fit_keeps_its_area() -> None:
    assert _block_size(20, 100.0, 4, 8) == (4, 5)
    assert _block_size(20, 0.01, 4, 8) == (3, 8)


def test_a_count_of_the_smallest_block_is_one_block() -> None:
    masking = config.Masking(count=16, min_block=16, min_aspect=1.0)
    mask = block_mask(np.random.default_rng(0), 14, 14, masking)
    rows, columns = np.nonzero(mask)
    assert np.ptp(rows) == 3 and np.ptp(columns) == 3


def test_masks_are_made_of_blocks_not_of_single_patches() -> None:
    """The right neighbour of a masked patch is mostly masked too; with independent patches 75 / 196 = 38 % would be."""
    shares = []
    for seed in range(50):
        mask = block_mask(np.random.default_rng(seed), 14, 14, BEIT)
        shares.append((mask[:, 1:] & mask[:, :-1]).sum() / mask[:, :-1].sum())
    assert np.mean(shares) > 0.75


def test_every_patch_is_sometimes_masked() -> None:
    rng = np.random.default_rng(0)
    frequency = np.mean([block_mask(rng, 14, 14, BEIT) for _ in range(2000)], axis=0)
    assert frequency.min() > 0.02  # the corners, which only blocks in a corner reach
    # No preferred side: the frequencies are symmetric under both reflections, up to chance.
    assert np.abs(frequency - frequency[::-1]).max() < 0.08
    assert np.abs(frequency - frequency[:, ::-1]).max() < 0.08
