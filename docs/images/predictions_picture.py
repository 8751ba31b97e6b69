"""Makes the README's picture of predictions: new scenes, as `peco predict --pictures` draws the objects and masks it finds in them.

    python docs/images/predictions_picture.py [--out docs/images/predictions.jpg] [--images 6]

It needs `artifacts/detector` and `artifacts/segmenter` of the default run. No training and no evaluation has seen these scenes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from peco import cli
from peco.annotations.scenes import FIRST
from peco.scenes import scenes
from peco.scenes.descriptor import read_descriptor

SIDE, OBJECTS = 160, 2  # pixels of a scene, and objects in it
LABELS, GAP = 100, 4  # pixels of the labels and between pictures
UNSEEN = FIRST["val"] + 1_000_000  # number of the first scene
ROWS = (("image", None), ("detector", "artifacts/detector"), ("segmenter", "artifacts/segmenter"))


def draw(count: int, work: Path) -> list[list[Image.Image]]:
    """The rows of pictures: the scenes, then each model's predictions on them.

    Raises:
        RuntimeError: a prediction failed; its error was printed.
    """
    photos = work / "photos"
    photos.mkdir()
    for number in range(count):
        scene = scenes.render(read_descriptor(Path("data/scenes.yaml")), UNSEEN + number, SIDE, OBJECTS)
        Image.fromarray(scene.image).save(photos / f"{number:02d}.png")
    rows = []
    for name, model in ROWS:
        folder = photos
        if model is not None:
            folder = work / name
            if cli.main(["predict", model, str(photos), "-o", str(folder), "--pictures"]):
                raise RuntimeError(model)
            folder = folder / "pictures"
        rows.append([Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.png"))])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; returns status 2 if a model is missing."""
    parser = argparse.ArgumentParser(description="Make the picture of predictions of the README.")
    parser.add_argument("--out", type=Path, default=Path("docs/images/predictions.jpg"))
    parser.add_argument("--images", type=int, default=6, choices=range(1, 17), metavar="1..16")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        try:
            rows = draw(arguments.images, Path(work))
        except RuntimeError:
            return 2
        size = (LABELS + arguments.images * (SIDE + GAP) - GAP, len(rows) * (SIDE + GAP) - GAP)
        sheet = Image.new("RGB", size, "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
        for number, ((label, _), pictures) in enumerate(zip(ROWS, rows, strict=True)):
            top = number * (SIDE + GAP)
            pen.text((LABELS - 10, top + SIDE // 2), label, fill="#333", font=font, anchor="rm")
            for column, picture in enumerate(pictures):
                sheet.paste(
                    picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (LABELS + column * (SIDE + GAP), top)
                )
    sheet.save(arguments.out, quality=90, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
