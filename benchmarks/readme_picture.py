"""The picture of the README: reconstructions and masked predictions of the artifacts in the current folder, as one PNG.

    python -m benchmarks.readme_picture [--out docs/images/scenes.png] [--images 8]

Rows are the original, its reconstruction, the image with masked patches, and what the decoder paints where masked tokens are
replaced by the backbone's predictions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from peco.core.errors import PecoError
from peco.data.shards import open_evaluation_split
from peco.report.figures import Painting, load_models, paint_predictions, read_images
from peco.runtime import paths

WIDTH, LABELS, GAP = 1100, 116, 4  # pixels: of the picture, about; of the labels; between images
ROWS = (("original", 0), ("reconstruction", 3), ("masked", 1), ("prediction", 2))  # and where a painting has it


def paintings(count: int) -> list[Painting]:
    """Masked predictions of the first images of val (of train, where there is none)."""
    models = load_models(paths.TOKENIZER, paths.BACKBONE)
    split = open_evaluation_split(paths.SHARDS)
    if models.target != "tokens":
        raise PecoError(
            f"{paths.BACKBONE}: predicts pixels, so there are no tokens to paint; take one that predicts tokens"
        )
    ours, theirs = (read_images(split, size, count)[0] for size in (models.tokenizer_size, models.backbone_size))
    return paint_predictions(models, ours, theirs)


def compose(columns: Sequence[Painting]) -> Image.Image:
    """Lay the pictures out in rows with a label each, on white."""
    cell = (WIDTH - LABELS) // len(columns) - GAP
    size = columns[0].pictures[0].shape[0]
    side = round(cell / size) * size if size <= cell else cell  # small images keep hard pixels of equal size
    sheet = Image.new("RGB", (LABELS + len(columns) * (side + GAP) - GAP, len(ROWS) * (side + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for row, (label, place) in enumerate(ROWS):
        top = row * (side + GAP)
        pen.text((LABELS - 10, top + side // 2), label, fill="#333", font=font, anchor="rm")
        for column, painting in enumerate(columns):
            pixels: np.ndarray = painting.pictures[place]
            how = Image.Resampling.NEAREST if side >= size else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(pixels).resize((side, side), how), (LABELS + column * (side + GAP), top))
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; status 2 where artifacts are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme_picture", description="The picture of the README."
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images/scenes.png"))
    parser.add_argument("--images", type=int, default=8, choices=range(1, 33), metavar="1..32")
    arguments = parser.parse_args(argv)
    try:
        picture = compose(paintings(arguments.images))
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
