"""Stage `evaluate@agreement`: agreement of pixels, tokens and the perceptual network with people on which of two views is closer.

It always scores triplets generated from images of val (of train, if there is no val); labels aren't needed. With
`evaluate.agreement.source: bapps` it also scores the 2AFC items of `path`. Nothing is fitted or chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from peco.core import artifacts, device, workfiles
from peco.core.publishing import staging
from peco.data.shards import open_evaluation_split
from peco.evaluate.agreement import scores as agreement
from peco.evaluate.agreement.distortions import DAMAGE, GEOMETRIC
from peco.evaluate.agreement.triplets import PAIRS, Triplets, TwoAfc, generate_split
from peco.evaluate.common import require_task, write_details
from peco.perceptual.features import FeatureNet
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage
from peco.tokenizer import storage

PARAMS = (
    *("perceptual_net.blocks", "perceptual_net.image_size", "tokenizer.perceptual"),
    *("evaluate.tasks.agreement", "evaluate.agreement"),
)
PICTURES = paths.PICTURES / "agreement"
# One picture for each kind of damage, each of a different image: fixed, so that the scores have no influence on the choice.
SHOWN = tuple(f"{geometric}_{damage}" for geometric, damage in zip((*GEOMETRIC, *GEOMETRIC), DAMAGE, strict=False))
NAMES = {
    "pixels": "pixels",
    "ssim": "SSIM",
    "tokens_hamming": "tokens that differ",
    "tokens_embedded": "embedded tokens",
    "perceptual": "perceptual network",
}
# Pixels: width of an image, gap between images, height of a line of text and of its letters.
WIDTH, GAP, LINE, FONT = 192, 12, 24, 15
RIGHT, WRONG, OUTLINE = "#1a7f37", "#c4432b", "#8c959f"


def main(run: StageRun) -> None:
    require_task(run, "agreement")
    cfg = run.config.evaluate.agreement
    size = storage.image_size(paths.TOKENIZER)
    compute_device = device.select_device()
    given = run.config.perceptual_net
    net = FeatureNet(artifacts.load_timm(paths.PERCEPTUAL_NET), given.blocks, given.image_size)
    network = agreement.NetworkDistances(net, run.config.tokenizer.perceptual.normalize).to(compute_device)
    tokens = agreement.TokenDistances(storage.load(paths.TOKENIZER).to(compute_device))
    methods: list[agreement.Method] = [agreement.pixel_distances, tokens, network.between]

    work = run.work([paths.SHARDS, paths.PERCEPTUAL_NET, paths.TOKENIZER])
    # Opened before any work, so that errors in it are reported at once.
    items = TwoAfc(Path(cfg.path), work) if cfg.source == "bapps" else None
    split = open_evaluation_split(paths.SHARDS)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    with staging(PICTURES) as folder:
        for number, triplets in enumerate(generate_split(split, size, cfg.references, run.workers)):
            found = agreement.answers(triplets, methods, compute_device)
            for name, row in found.items():
                rows[name].append(row)
            if number < len(SHOWN) and SHOWN[number] in triplets.damaged:
                picture(triplets, SHOWN[number], found).save(folder / f"{SHOWN[number]}.png", compress_level=9)
        metrics = agreement.summarize({name: np.stack(values) for name, values in rows.items()})
        details = {"pairs": metrics.pop("pairs")}
        if items is not None:
            scores = agreement.score_two_afc(items, size, methods, compute_device)
            two_afc = agreement.summarize_two_afc(items, scores)
            details["two_afc_categories"] = two_afc.pop("categories")
            metrics["two_afc"] = two_afc
        write_details(folder, details)
    run.metrics(metrics)
    workfiles.mark_finished(work)


def picture(triplets: Triplets, pair: str, answers: Mapping[str, np.ndarray]) -> Image.Image:
    """Draw a triplet, the moved view left and the damaged one right of the reference, with the choice of each method below.

    A full circle is the choice, green under the moved view, red under the damaged one; two empty circles are a tie.
    """
    geometric, _, damage = pair.partition("_")
    images = (triplets.moved[geometric], triplets.reference, triplets.damaged[pair])
    side = max(1, round(WIDTH / images[0].shape[-1])) * images[0].shape[-1]
    lefts = [number * (side + GAP) for number in range(3)]
    sheet = Image.new("RGB", (lefts[-1] + side, LINE + side + GAP // 2 + LINE * len(answers)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT)
    for left, title, image in zip(lefts, (geometric, "reference", damage), images, strict=True):
        pixels = np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, LINE))
        pen.text((left + side // 2, LINE // 2), title, fill="black", font=font, anchor="mm")
    middles = [left + side // 2 for left in lefts]
    for number, (method, row) in enumerate(answers.items()):
        y = LINE + side + GAP // 2 + LINE * number + LINE // 2
        pen.text((middles[1], y), NAMES[method], fill="black", font=font, anchor="mm")
        answer = row[PAIRS.index(pair)]
        for x, chosen, color in ((middles[0], answer == 1, RIGHT), (middles[2], answer == 0, WRONG)):
            outline = color if chosen else OUTLINE
            if chosen or answer == 0.5:
                pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=color if chosen else None, outline=outline, width=2)
    return sheet


if __name__ == "__main__":
    run_stage("evaluate@agreement", PARAMS, main)
