"""Block-wise masking as in BEiT (arXiv 2106.08254, algorithm 1), with an exact number of masked patches.

Blocks of random place, area and aspect are added until enough patches are masked. BEiT's own code may mask fewer; here the last
block is cut to the missing number, so that every image has the same number of targets.
"""

from __future__ import annotations

import math

import numpy as np

from peco.core import config

# A block nearly always masks a new patch. If the grid is almost full and no block falls into a gap, single patches fill it.
MAX_BLOCKS = 64


def block_mask(rng: np.random.Generator, height: int, width: int, masking: config.Masking) -> np.ndarray:
    """Draw a mask.

    A block covers at least `min_block` patches; its aspect (height over width) is log-uniform between `min_aspect` and its
    inverse, before it is rounded to whole patches and fitted to the grid.

    Args:
        rng: random generator; the mask is a function of its state.
        height, width: of the token grid.
        masking: number of patches and shape of the blocks; `count` must be at most `height * width`.

    Returns:
        bool (height, width), True at exactly `masking.count` patches.
    """
    mask = np.zeros((height, width), dtype=bool)
    missing = masking.count
    log_aspect = math.log(masking.min_aspect)
    for area_u, aspect_u, top_u, left_u, end_u in rng.random((MAX_BLOCKS, 5)).tolist():
        largest = max(masking.min_block, missing)
        area = min(masking.min_block + area_u * (largest - masking.min_block), height * width)
        block_height, block_width = _block_size(area, math.exp((1 - 2 * aspect_u) * log_aspect), height, width)
        top = int(top_u * (height - block_height + 1))
        left = int(left_u * (width - block_width + 1))
        block = mask[top : top + block_height, left : left + block_width]
        new = block_height * block_width - int(np.count_nonzero(block))
        if new <= missing:
            block[...] = True
            missing -= new
        else:
            rows, columns = np.nonzero(~block)
            kept = slice(missing) if end_u < 0.5 else slice(new - missing, None)
            block[rows[kept], columns[kept]] = True
            missing = 0
        if missing == 0:
            return mask
    free = np.flatnonzero(~mask)
    mask.flat[rng.choice(free, missing, replace=False)] = True
    return mask


def _block_size(area: float, aspect: float, height: int, width: int) -> tuple[int, int]:
    """Height and width of a block of at least `area` patches that fits the grid and is close to `aspect`."""
    rows = min(max(round(math.sqrt(area * aspect)), 1), height)
    columns = min(math.ceil(area / rows), width)
    return max(rows, math.ceil(area / columns)), columns
