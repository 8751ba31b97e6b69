"""Makes the picture of the README from the artifacts in the current folder: reconstructions and masked predictions in one PNG.

    python docs/images/readme_picture.py [--out docs/images/scenes.png] [--images 8]

The rows are the original, its reconstruction, the image with masked patches, and the decoder's picture of the tokens with the
masked ones replaced by the backbone's predictions.
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
from peco.report.figures import MaskedPrediction, draw_predictions, load_models, read_images
from peco.runtime import paths

# Pixels: approximate width of the picture, width of the labels, gap between images.
WIDTH, LABELS, GAP = 1100, 116, 4
# Label of each row and the index of its picture in a prediction.
ROWS = (("original", 0), ("reconstruction", 3), ("masked", 1), ("prediction", 2))


def predictions(count: int) -> list[MaskedPrediction]:
    """Masked predictions of the first images of val (of train, if there is no val)."""
    models = load_models(paths.TOKENIZER, paths.BACKBONE)
    split = open_evaluation_split(paths.SHARDS)
    if models.target != "tokens":
        raise PecoError(
            f"{paths.BACKBONE}: predicts pixels, so there are no tokens to decode; use a backbone that predicts tokens"
        )
    tokenizer_x_BCHW, backbone_x_BCHW = (
        read_images(split, size, count)[0] for size in (models.tokenizer_size, models.backbone_size)
    )
    return draw_predictions(models, tokenizer_x_BCHW, backbone_x_BCHW)


def compose(columns: Sequence[MaskedPrediction]) -> Image.Image:
    """Arrange the pictures in labelled rows on white."""
    cell = (WIDTH - LABELS) // len(columns) - GAP
    size = columns[0].pictures[0].shape[0]
    side = round(cell / size) * size if size <= cell else cell  # small images are enlarged by a whole factor
    sheet = Image.new("RGB", (LABELS + len(columns) * (side + GAP) - GAP, len(ROWS) * (side + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for row, (label, index) in enumerate(ROWS):
        top = row * (side + GAP)
        pen.text((LABELS - 10, top + side // 2), label, fill="#333", font=font, anchor="rm")
        for column, prediction in enumerate(columns):
            pixels: np.ndarray = prediction.pictures[index]
            filter_ = Image.Resampling.NEAREST if side >= size else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(pixels).resize((side, side), filter_), (LABELS + column * (side + GAP), top))
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; returns status 2 if artifacts are missing."""
    parser = argparse.ArgumentParser(description="Make the picture of the README.")
    parser.add_argument("--out", type=Path, default=Path("docs/images/scenes.png"))
    parser.add_argument("--images", type=int, default=8, choices=range(1, 33), metavar="1..32")
    arguments = parser.parse_args(argv)
    try:
        picture = compose(predictions(arguments.images))
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
