"""Makes the pictures of docs/tutorial.md from what its commands have written: predictions, and the page of similar images.

    python docs/images/tutorial_pictures.py CHECKOUT [--out docs/images]

CHECKOUT is the folder in which the tutorial was followed. It needs Chromium (Debian's package `chromium`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

COLUMNS, ROWS, SIDE, GAP = 7, 2, 128, 4  # pixels
PAGE = (900, 560)  # pixels of the window


def predictions(folder: Path) -> Image.Image:
    """The first pictures of `peco predict --pictures`, side by side."""
    files = sorted(folder.rglob("*.png"))[: COLUMNS * ROWS]
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, ROWS * (SIDE + GAP) - GAP), "white")
    for number, file in enumerate(files):
        picture = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (number % COLUMNS * (SIDE + GAP), number // COLUMNS * (SIDE + GAP)))
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of the tutorial.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args(argv)
    sheet = predictions(arguments.checkout / "predictions/pictures")
    sheet.save(arguments.out / "tutorial_predictions.jpg", quality=88, optimize=True)
    shot = arguments.out / "tutorial_similar.png"
    size = f"--window-size={PAGE[0]},{PAGE[1]}"
    page = (arguments.checkout / "similar.html").resolve().as_uri()
    subprocess.run(["chromium", "--headless", "--no-sandbox", size, f"--screenshot={shot.resolve()}", page], check=True)
    Image.open(shot).convert("P", palette=Image.Palette.ADAPTIVE).save(shot, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
