"""A training step of the quantizer, compared with vector-quantize-pytorch, as a markdown table.

    python -m benchmarks.quantizer [--rounds 9]

Both assign random vectors to 8,192 codes by Euclidean distance and move the codebook by moving averages (decay 0.99), in fp32 with
as many threads as torch has. A step is that of 32 images with grids of 14 x 14.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.interleaved import measure, table
from peco.core import config
from peco.tokenizer.quantizer import VectorQuantizer

OURS, PEER = "peco", "vector-quantize-pytorch"
CODES, DECAY = 8192, 0.99
WIDTHS = (32, 256)
SHAPE = (32, 14, 14)  # images, grid


def ours(z_BDhw: Tensor) -> Callable[[], None]:
    quantizer = VectorQuantizer(
        config.Quantizer(
            codes=CODES, dim=z_BDhw.shape[1], decay=DECAY, l2_normalize=False, restart_after=0, kmeans_iters=0
        )
    )

    def step() -> None:
        quantizer(z_BDhw)
        quantizer.update()

    return step


def theirs(z_BDhw: Tensor) -> Callable[[], None]:
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=z_BDhw.shape[1], codebook_size=CODES, decay=DECAY, accept_image_fmap=True)
    return lambda: quantizer(z_BDhw)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    peer = importlib.util.find_spec("vector_quantize_pytorch") is not None
    if not peer:
        print(f"{PEER} is not installed; its rows are left out")
    images, *grid = SHAPE
    for width in WIDTHS:
        z_BDhw = torch.randn(images, width, *grid, generator=torch.Generator().manual_seed(0))
        steps = {OURS: ours(z_BDhw)} | ({PEER: theirs(z_BDhw)} if peer else {})
        print(f"\n{CODES} codes of width {width}\n")
        print(table(measure(steps, arguments.rounds), OURS, z_BDhw.numel() / width, "vectors/s"), flush=True)


if __name__ == "__main__":
    main()
