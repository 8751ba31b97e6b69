"""The report's sections on segmentation, detection, perceptual agreement and the codebook: a table and pictures each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from peco.report.page import DASH, MetricsByFile, percent, picture

Values = Mapping[str, Any]
PICTURES_SHOWN = 8
METHODS = {
    "pixels": "Pixels",
    "ssim": "SSIM",
    "tokens_hamming": "Tokens that differ",
    "tokens_embedded": "Embedded tokens",
    "perceptual": "Perceptual network",
}


@dataclass(frozen=True)
class SectionRow:
    """A row of a section's table; its cells are text."""

    name: str
    cells: tuple[str, ...]
    emphasized: bool = False


@dataclass(frozen=True)
class Section:
    """The section on one evaluation."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[SectionRow, ...]
    pictures: tuple[tuple[str, Markup], ...]  # caption and picture


def evaluation_sections(metrics: MetricsByFile, pictures: Path, backbones: Mapping[str, str]) -> list[Section]:
    """Make the sections, each with a table, or with the reason why its evaluation has no result.

    Args:
        metrics: all metrics files (`page.read_metrics`).
        pictures: folder with a folder of PNG files for each evaluation.
        backbones: names of the evaluated backbones by the prefix of their metrics, the pre-trained one first.
    """
    kinds: tuple[
        tuple[str, str, Callable[[Values, Mapping[str, str]], tuple[str, tuple[str, ...], list[SectionRow]]]], ...
    ] = (
        ("segmentation", "Semantic segmentation", _segmentation),
        ("detection", "Detection and instance segmentation", _detection),
        ("agreement", "Perceptual agreement", _agreement),
        ("codebook", "What the codebook learned", _codebook),
    )
    found = []
    for key, title, describe in kinds:
        values = metrics.get(f"evaluate/{key}")
        if values is None or "skipped" in values:
            reason = "it has not run" if values is None else str(values["skipped"])
            found.append(Section(key, title, f"No result: {reason}.", (), (), ()))
            continue
        if "failed" in values:
            found.append(
                Section(key, title, f"It failed, and the next run tries it again: {values['failed']}", (), (), ())
            )
            continue
        note, columns, rows = describe(values, backbones)
        note += _on_annotations(metrics.get(f"annotations/{key}", {}))
        found.append(Section(key, title, note, columns, tuple(rows), tuple(_pictures(pictures / key))))
    return found


def _on_annotations(checked: Values) -> str:
    """Sentences on what the stage `annotations` left out, and on how it read the set."""
    reasons = checked.get("left_out_by_reason", {})
    left_out = (
        [f"Left out: {', '.join(f'{reason}: {count:,}' for reason, count in reasons.items())}"] if reasons else []
    )
    return "".join(f" {sentence[0].upper()}{sentence[1:]}." for sentence in [*left_out, *checked.get("notes", [])])


def _segmentation(values: Values, backbones: Mapping[str, str]) -> tuple[str, tuple[str, ...], list[SectionRow]]:
    scores = ("miou", "pixel_accuracy")
    note = (
        f"UPerNet on the whole backbone, fine-tuned; {values['images']:,} images of val. "
        "Pictures: image, truth, the predictions."
    )
    return note, ("mIoU", "pixel accuracy"), _compared(values, backbones, scores)


def _detection(values: Values, backbones: Mapping[str, str]) -> tuple[str, tuple[str, ...], list[SectionRow]]:
    names = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}
    scores = tuple(name for name in names if values["masks"] or name.startswith("box"))
    kind = "Mask R-CNN" if values["masks"] else "Faster R-CNN"
    note = (
        f"{kind} on a simple feature pyramid over the whole backbone; {values['images']:,} images of val, COCO's "
        "average precision. Pictures: truth, the predictions."
    )
    return note, tuple(names[score] for score in scores), _compared(values, backbones, scores)


def _compared(values: Values, backbones: Mapping[str, str], scores: Sequence[str]) -> list[SectionRow]:
    """A row of each backbone."""
    return [
        SectionRow(name, tuple(_share(values.get(f"{prefix}{score}")) for score in scores), emphasized=not prefix)
        for prefix, name in backbones.items()
    ]


def _agreement(values: Values, backbones: Mapping[str, str]) -> tuple[str, tuple[str, ...], list[SectionRow]]:
    note = (
        "Which of two views is closer to the reference: a small movement, or damage with the same error in pixels? "
        f"{values['triplets']:,} triplets of {values['references']:,} images; the moved view counts as right, guessing gets 50 %."
    )
    rows = [
        SectionRow(
            name,
            (_share(values[f"{key}_accuracy"]), f"{_share(values[f'{key}_low'])} to {_share(values[f'{key}_high'])}"),
            emphasized=key.startswith("tokens"),
        )
        for key, name in METHODS.items()
        if f"{key}_accuracy" in values
    ]
    if people := values.get("two_afc"):
        note += f" BAPPS: {people['judged']:,} judged items."
        rows += [
            SectionRow(
                f"{name}, 2AFC score",
                (_share(people[f"{key}_score"]), f"{_share(people[f'{key}_low'])} to {_share(people[f'{key}_high'])}"),
                emphasized=key.startswith("tokens"),
            )
            for key, name in METHODS.items()
            if f"{key}_score" in people
        ]
    return note, ("right", "95 % interval"), rows


def _codebook(values: Values, backbones: Mapping[str, str]) -> tuple[str, tuple[str, ...], list[SectionRow]]:
    rows = [
        ("Linear probe on token histograms", "token_histogram_accuracy", _share),
        ("Linear probe on the mean code", "token_mean_accuracy", _share),
        ("Linear probe on the grid of codes", "token_grid_accuracy", _share),
        ("Codes used", "usage", _share),
        ("Perplexity", "perplexity", "{:.0f}".format),
        ("Class-specific codes", "telling_codes", "{:.0f}".format),
        ("PSNR, dB", "psnr", "{:.2f}".format),
        ("SSIM", "ssim", "{:.3f}".format),
        ("Fréchet distance", "frechet", "{:.2f}".format),
    ]
    note = (
        f"On {values['images']:,} images of {values['split']}, compared with k-means codes of raw pixel patches: "
        "the same number of codes on the same grid. Pictures: patches that share a code, of the most used codes and of "
        "the class-specific ones."
    )
    if "linear_skipped" in values:
        note += f" Without linear probes: {values['linear_skipped']}."
    cells = [
        SectionRow(
            name,
            tuple(
                form(values[f"{prefix}{key}"]) if f"{prefix}{key}" in values else DASH for prefix in ("", "patches_")
            ),
        )
        for name, key, form in rows
        if key in values
    ]
    return note, ("tokenizer", "k-means patches"), cells


def _share(value: float | None) -> str:
    return DASH if value is None else percent(value)


def _pictures(folder: Path) -> list[tuple[str, Markup]]:
    """Captions and pictures of the PNG files of a folder; files named `NN-KIND` of the same number are put side by side."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.png")):
        groups.setdefault(file.stem[:2] if re.match(r"\d\d-", file.stem) else file.stem, []).append(file)
    order = ("image", "truth", "pretrained", "random", "reference")
    found = []
    for name, files in list(groups.items())[:PICTURES_SHOWN]:
        kinds = {file.stem.partition("-")[2]: file for file in files}
        ranked = [kinds[kind] for kind in order if kind in kinds] if name[:2].isdigit() else files
        images = [np.asarray(Image.open(file).convert("RGB")) for file in ranked]
        caption = "" if name[:2].isdigit() else name.replace("_", " against ").replace("-", " ")
        found.append((caption, picture(images, caption or ", ".join(kind for kind in order if kind in kinds))))
    return found
