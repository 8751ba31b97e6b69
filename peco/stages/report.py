"""Stage `report`: data, reconstructions, codebook, masked predictions, curves, evaluations and parameters on one page.

The page needs no other file and no network, and holds no time, host or path: same inputs, same bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from peco.core import config, device, schema
from peco.core.image_metrics import psnr
from peco.core.publishing import write_file
from peco.data import views
from peco.data.shards import ShardSet, load_index, open_shards
from peco.report import figures, page, transfer
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage

PARAMS = (
    "preset",
    "seed",
    "dataset",
    "loader",
    "perceptual_net",
    "tokenizer",
    "tokens",
    "pretrain",
    "evaluate",
    "report",
)
CODE_IMAGES = 512  # that codes are counted on
GALLERY, PATCHES = 9, 8
SHEET_CLASSES, SHEET_IMAGES, SHEET_SIZE = 24, 6, 96  # at most: classes, images of each, pixels a side
PACKAGES = ("peco", "torch", "timm", "numpy", "pillow")


def main(run: StageRun) -> None:
    cfg = run.config
    index = load_index(paths.SHARDS)
    metrics = page.read_metrics(paths.METRICS)
    split = "val" if "val" in index["splits"] else "train"
    html = page.render(
        preset=cfg.preset,
        description=describe(cfg, index),
        params_text=page.params_text(schema.to_dict(cfg)),
        versions=[
            ("Python", ".".join(platform.python_version_tuple()[:2])),
            *((name, version(name)) for name in PACKAGES),
        ],
        stages=page.read_curves(paths.PLOTS),
        split="the validation split" if split == "val" else "the training split (there is no other)",
        tasks=transfer.tasks(metrics, paths.PICTURES, backbone_name(cfg)),
        **evaluation(cfg, metrics, open_shards(paths.SHARDS, split)),
        **data(index),
        **pictures(cfg, metrics, open_shards(paths.SHARDS, split)),
        **perceptual_net(cfg, metrics),
    )
    write_file(paths.REPORT, html)


def version(package: str) -> str:
    """Version of an installed package without its build, which depends on the machine (`+cpu`)."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed"


def describe(cfg: config.Config, index: dict[str, Any]) -> str:
    """What was run on what, in a sentence."""
    words = {"train": "training", "val": "validation"}
    images = page.joined([f"{page.number(split['samples'])} {words[name]}" for name, split in index["splits"].items()])
    source = {"scenes": "the embedded set of procedural scenes"}.get(index["source"], "images of your own")
    vit, quantizer = cfg.pretrain.vit, cfg.tokenizer.quantizer
    return (
        f"Preset {cfg.preset}, seed {cfg.seed}, on {source}: {images} images. A ViT of {vit.depth} blocks of width "
        f"{vit.embed_dim} sees {cfg.loader.image_size} {page.TIMES} {cfg.loader.image_size} pixels in patches of {vit.patch_size}; "
        f"the codebook has {page.number(quantizer.codes)} codes. {budget(cfg, index['splits']['train']['samples'])}"
    )


def budget(cfg: config.Config, samples: int) -> str:
    """How many images each training saw, repeats counted, since scores of different budgets don't compare."""
    stages = [("the tokenizer", cfg.tokenizer.optim), ("pre-training", cfg.pretrain.optim)]
    if cfg.perceptual_net.source == "train":
        stages.insert(0, ("the perceptual network", cfg.perceptual_net.optim))
    seen = [f"{name} {page.number(optim.images_seen(samples))}" for name, optim in stages]
    return f"Images seen: {page.joined(seen)}."


def backbone_name(cfg: config.Config) -> str:
    """What the pre-trained backbone is called."""
    if cfg.pretrain.target == "pixels":
        return "Pixel-regression backbone"
    if cfg.tokenizer.objective == "vqkd":
        return "VQ-KD backbone"
    return "Pixel-codebook backbone" if cfg.tokenizer.perceptual.weight == 0 else "PeCo backbone"


def evaluation(cfg: config.Config, metrics: page.Metrics, split: ShardSet) -> dict[str, Any]:
    """The table, and the figures below it."""
    rows = page.evaluation_rows(metrics, backbone_name(cfg))
    notes = page.choices(metrics)
    error = page.standard_error(rows, len(split))
    if error is not None:
        notes.append(
            f"With {page.number(len(split))} images the standard error of an accuracy is up to {100 * error:.1f} points."
        )
        most = np.bincount(split.labels[split.labels >= 0], minlength=1).max() / len(split)
        notes.append(f"Always naming the commonest class gives {page.percent(most)}.")
    tokenizer, pretrain = metrics.get("tokenizer", {}), metrics.get("pretrain", {})
    facts = []
    for name, values, key, form, note in (
        (
            "Codebook usage",
            tokenizer,
            "usage",
            "{:.1%}",
            "codes met in the last (possibly partial) epoch of the tokenizer's training",
        ),
        (
            "Perplexity",
            tokenizer,
            "perplexity",
            "{:.0f}",
            f"of {page.number(cfg.tokenizer.quantizer.codes)} codes, same epoch",
        ),
        ("PSNR", tokenizer, "val_psnr", "{:.2f} dB", "mean over reconstructions"),
        ("Masked tokens", pretrain, "accuracy", "{:.1%}", "predicted exactly at the end of pre-training"),
    ):
        if key in values:
            facts.append((name, form.format(values[key]).replace("%", f"{page.NARROW_SPACE}%"), note))
    return {
        "verdict": page.verdict(rows),
        "evaluations": [name for name, _ in page.EVALUATIONS],
        "states": ["skipped" if "skipped" in metrics.get(key, {}) else page.DASH for _, key in page.EVALUATIONS],
        "scored_on": f"{page.number(len(split))} images of {split.split}",
        "rows": rows,
        "skipped": page.skipped(metrics),
        "notes": notes,
        "facts": facts,
    }


def data(index: dict[str, Any]) -> dict[str, Any]:
    """Counts and contact sheets."""
    sets = {name: open_shards(paths.SHARDS, name) for name in index["splits"]}
    train, classes = sets["train"], len(index["classes"])
    counts = {name: np.bincount(shards.labels[shards.labels >= 0], minlength=classes) for name, shards in sets.items()}
    present = np.flatnonzero(counts["train"])
    chosen = present[np.unique(np.linspace(0, len(present) - 1, min(SHEET_CLASSES, len(present))).round().astype(int))]
    spread = ""
    if len(present):
        least, most = (page.number(int(end(counts["train"][present]))) for end in (np.min, np.max))
        spread = f"Each class has {least if least == most else f'{least} to {most}'} images in train."
        if len(chosen) < len(present):
            spread += f" {len(chosen)} of the {page.number(len(present))} classes are shown."
        shown = {
            label: thumbnails(train, np.flatnonzero(train.labels == label)[:SHEET_IMAGES]) for label in chosen.tolist()
        }
        sheets = page.class_sheets(train, shown, counts)
    else:
        images = np.arange(min(len(train), 8 * SHEET_IMAGES))
        sheets = [
            sheet
            for start in range(0, len(images), SHEET_IMAGES)
            for sheet in page.class_sheets(train, {-1: thumbnails(train, images[start : start + SHEET_IMAGES])}, counts)
        ]
    return {"splits": index["splits"], "rejected": index["rejected"], "spread": spread, "sheets": sheets}


def thumbnails(shards: ShardSet, indices: np.ndarray) -> list[np.ndarray]:
    """Small evaluation views of some samples, all of one size."""
    images = [sample.decode() for i in indices.tolist() for sample in shards.read(i, i + 1)]
    size = min(SHEET_SIZE, *(min(image.size) for image in images))
    return [views.apply(image, views.center(image.width, image.height), size) for image in images]


def pictures(cfg: config.Config, metrics: page.Metrics, split: ShardSet) -> dict[str, Any]:
    """What tokenizer and backbone do with images of `split`."""
    where = device.choose()
    models = figures.load_models(paths.TOKENIZER, paths.BACKBONE, where)
    tokenizer = models.tokenizer
    count = cfg.report.images
    x_BCHW, labels = figures.read_images(split, models.tokenizer_size, max(CODE_IMAGES, count))
    backbone_x_BCHW, _ = figures.read_images(split, models.backbone_size, count)
    x_BCHW, backbone_x_BCHW = x_BCHW.to(where), backbone_x_BCHW.to(where)
    names = [split.classes[label] if label >= 0 else f"image {i + 1}" for i, label in enumerate(labels[:count])]

    shown_BCHW = x_BCHW[:count]
    painted_BCHW = tokenizer.reconstruct(shown_BCHW)
    originals, painted = figures.to_pixels(shown_BCHW), figures.to_pixels(painted_BCHW)
    decibels = psnr(shown_BCHW, painted_BCHW).tolist()
    reconstructions = [
        (name, value, page.picture(pair, f"{name}: original and reconstruction, {value:.1f} dB"))
        for name, value, *pair in zip(names, decibels, originals, painted, strict=True)
    ]
    codes = figures.study_codes(tokenizer, x_BCHW, gallery=GALLERY, patches=PATCHES)
    paintings = figures.paint_predictions(models, shown_BCHW, backbone_x_BCHW)
    return {
        "reconstructions": reconstructions,
        "reconstruction_note": reconstruction_note(metrics.get("tokenizer", {})),
        "codebook_note": (
            f"On {page.number(codes.images)} images of {split.split}, {page.percent(codes.usage)} of the "
            f"{page.number(len(codes.histogram_K))} codes occur; the perplexity of their distribution is {codes.perplexity:.0f}."
        ),
        "code_chart": page.code_chart(codes),
        "patch": tokenizer.factor,
        "gallery": [
            (entry, page.picture(entry.patches, f"{len(entry.patches)} image patches of code {entry.code}"))
            for entry in codes.gallery
        ],
        "masked": masked_section(
            paintings, names, (models.tokenizer_size // tokenizer.factor) ** 2, tokenizer.quantizer.codes
        ),
    }


def masked_section(
    paintings: Sequence[figures.Painting], names: Sequence[str], patches: int, codes: int
) -> dict[str, Any]:
    """Masked predictions: what they are, how many were right, and a strip of pictures an image."""
    hidden = f"The backbone sees an image with {paintings[0].count} of its {patches} patches hidden and predicts their"
    columns = ["original", "masked", "predicted tokens", "true tokens"]
    if paintings[0].correct is None:
        title, columns = "Masked patches, predicted", ["original", "masked", "predicted pixels"]
        text = (
            f"{hidden} pixels, each patch brought to one mean and contrast. Here it gets its true mean and contrast back, so "
            "the colours are no achievement of the model, but the patterns are."
        )
        captions = [f"{painting.count} patches hidden" for painting in paintings]
    else:
        title = "Masked-token predictions, painted"
        correct, masked = sum(p.correct or 0 for p in paintings), sum(p.count for p in paintings)
        text = (
            f"{hidden} tokens. The decoder paints the grid with the predicted tokens in the gaps, and for comparison the grid of "
            f"true tokens. {masked_note(correct, masked, codes)}"
        )
        captions = [f"{painting.correct} of {painting.count} tokens exactly right" for painting in paintings]
    strips = [
        (name, caption, page.picture(painting.pictures, f"{name}: {', '.join(columns)}"))
        for name, caption, painting in zip(names, captions, paintings, strict=True)
    ]
    return {"title": title, "text": text, "columns": columns, "paintings": strips}


def reconstruction_note(scores: Mapping[str, float]) -> str:
    """The tokenizer's scores as a sentence."""
    known = (("val_psnr", "PSNR {:.2f} dB"), ("val_l1", "L1 {:.4f}"), ("val_perceptual", "perceptual distance {:.3f}"))
    parts = [form.format(scores[key]) for key, form in known if key in scores]
    return f"Means as the tokenizer was scored: {page.joined(parts)}." if parts else "The tokenizer has no scores."


def masked_note(correct: int, masked: int, codes: int) -> str:
    """How many predictions were right, beside guessing."""
    return (
        f"Of these {page.number(masked)} masked tokens {page.percent(correct / masked)} are predicted exactly; a blind guess among "
        f"{page.number(codes)} codes would be right in {100 / codes:.2g}{page.NARROW_SPACE}%. Another code may well paint the same."
    )


def perceptual_net(cfg: config.Config, metrics: page.Metrics) -> dict[str, Any]:
    """Which network, and its score."""
    net, scores = cfg.perceptual_net, metrics.get("perceptual_net", {})
    if net.source == "train":
        note = f"Trained on these images by MoCo v3: a ViT of {net.vit.depth} blocks of width {net.vit.embed_dim}."
    else:
        weights = net.timm.checkpoint or ("pre-trained weights" if net.timm.pretrained else "random weights")
        note = f"timm's {net.timm.model} with {weights if net.timm.checkpoint is None else 'weights of a local file'}."
    rows = [("Perceptual network", "knn_accuracy"), ("Random initialisation", "random_knn_accuracy")]
    found = [(name, scores[key]) for name, key in rows if key in scores]
    if cfg.tokenizer.objective == "peco" and cfg.tokenizer.perceptual.weight == 0:
        note += " It had no part in the codebook: tokenizer.perceptual.weight is 0."
    return {"perceptual_note": note if found else f"{note} It has no score: that needs labels.", "perceptual": found}


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
